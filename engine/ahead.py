"""What a start begins before it imports the rest: it takes no part of the interpreter's time."""

from __future__ import annotations

import os

from gguf_serve.kernels.opencl.compiling.cache_folder import features_path
from gguf_serve.kernels.opencl.compiling.worker import N_WORKERS, begin_workers
from gguf_serve.kernels.opencl.drivers import leave_out_unused

BLAS_THREADS = "OPENBLAS_NUM_THREADS"


def begin_ahead(*, names_device: bool) -> None:
    """On a user's first start begin the processes that compile.

    ``names_device``: an option does, so that all drivers are needed, by the numbers that
    --list-devices gives their devices; others are loaded only if they may be chosen.
    """
    # NumPy starts these when it is imported, half of what that takes; nothing here uses them.
    os.environ.setdefault(BLAS_THREADS, "1")
    if not names_device:
        leave_out_unused()
    path = features_path()
    if path is not None and not path.exists():
        begin_workers(min(N_WORKERS, os.cpu_count() or 1))
