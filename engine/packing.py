"""Filling a model's matrices from its file, in one pass."""

from __future__ import annotations

import time
from collections.abc import Sequence

from engine.gguf import GGUFFile
from kernels.device import Device
from kernels.program import Programs
from kernels.weights import PackJob, run_job

DROP_BYTES = 32 << 20  # of the file, read before its pages are let go


class Packing:
    """Jobs that are run in a thread, which another one watches.

    As a context it ends what ``run`` does when it is left.
    """

    def __init__(self, gguf: GGUFFile, jobs: Sequence[tuple[Device, Programs, PackJob]]) -> None:
        self._gguf, self._jobs = gguf, jobs
        self._n_bytes = sum(job.part.data.nbytes for _, _, job in jobs)
        self._n_done, self._seconds = 0, 0.0
        self._stopped = False

    def __enter__(self) -> Packing:
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
        """Fill the matrices: one after another, so that no second copy of the model is ever in
        memory."""
        dropped, began = 0, time.perf_counter()
        for device, programs, job in self._jobs:
            if self._stopped:
                return
            run_job(device, programs, job)
            self._n_done += job.part.data.nbytes
            if self._n_done - dropped >= DROP_BYTES:
                self._gguf.drop_pages()
                dropped = self._n_done
        self._seconds = time.perf_counter() - began
