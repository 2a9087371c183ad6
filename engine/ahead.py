"""What a start begins before it imports the rest: it takes no part of the interpreter's time."""

from __future__ import annotations

import os

from gguf_serve.kernels.opencl.compiling.cache_folder import features_path
from gguf_serve.kernels.opencl.compiling.worker import N_WORKERS, begin_workers
from gguf_serve.kernels.opencl.drivers import leave_out_unused, load_ahead

BLAS_THREADS = "OPENBLAS_NUM_THREADS"


def begin_ahead(n_threads: int, *, names_device: bool) -> None:
    """Load the CPU's driver aside, and others only if they may be needed; on a user's first start
    begin the processes that compile.

    ``n_threads`` of the driver, below 1 as it likes. ``names_device``: an option does, so that all
    are needed, by the numbers that --list-devices gives them.
    """
    # NumPy starts these when it is imported, half of what that takes; nothing here uses them.
    os.environ.setdefault(BLAS_THREADS, "1")
    if not names_device:
        leave_out_unused()
    load_ahead(n_threads)
    path = features_path()
    if path is not None and not path.exists():
        begin_workers(min(N_WORKERS, os.cpu_count() or 1))
