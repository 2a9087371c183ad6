"""Filling a model's matrices from its file, in one pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.quantization.weights import PackJob, enqueue_job

PENDING_BYTES = 32 << 20  # of the file that are packed before its pages are let go


class PackRun:
    """Jobs that are run in a thread, which another one watches.

    As a context it ends what ``run`` does when it is left.
    """

    def __init__(self, gguf: GGUFFile, jobs: Sequence[tuple[Device, Programs, PackJob]]) -> None:
        self._gguf, self._jobs = gguf, jobs
        self._n_bytes = sum(job.part.data.nbytes for _, _, job in jobs)
        self._n_done, self._seconds = 0, 0.0
        self._stopped = False

    def __enter__(self) -> PackRun:
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped = True

    def __str__(self) -> str:
        return f"{self._n_bytes / 2**20:.0f} MiB packed in {self._seconds:.1f} s"

    @property
    def progress(self) -> float:
        """The share that is done, 0 to 1."""
        return self._n_done / self._n_bytes if self._n_bytes else 1.0

    def run(self) -> None:
        """Fill the matrices, a few at a time, so that no second copy of the model is ever in
        memory."""
        began, pending, n_pending = time.perf_counter(), list[Any](), 0
        for device, programs, job in self._jobs:
            if self._stopped:
                return
            pending.append((device, enqueue_job(device, programs, job)))
            n_pending += job.part.data.nbytes
            if n_pending >= PENDING_BYTES or job is self._jobs[-1][-1]:
                for other, raw in pending:
                    other.finish()
                    raw.release()
                pending.clear()
                self._gguf.drop_pages()
                self._n_done += n_pending
                n_pending = 0
        self._seconds = time.perf_counter() - began
