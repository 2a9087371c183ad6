"""Rows of a matrix on a device, for the host: embeddings that are added up there."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gguf_serve.kernels.matrix.embed import embed
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import N_COUNTS, Tape
from gguf_serve.kernels.opencl.tensor import empty, read, write
from gguf_serve.kernels.quantization.weights import Matrix

Floats = npt.NDArray[np.float32]
MOST = 64  # rows that are read at once


class Lookup:
    """Lives in the engine's thread."""

    def __init__(self, matrix: Matrix, device: Device, programs: Programs) -> None:
        self._device = device
        self._ids = empty(device, (MOST,), np.int32)
        self._out = empty(device, (MOST, matrix.n_cols))
        self._tape = Tape(device, programs)
        embed(self._tape, matrix, self._ids, self._out)

    def rows(self, ids: npt.ArrayLike) -> Floats:
        """float32 [n, columns]."""
        wanted = np.asarray(ids, np.int32).reshape(-1)
        found = [self._some(wanted[at : at + MOST]) for at in range(0, len(wanted), MOST)]
        return np.concatenate(found) if len(found) > 1 else found[0]

    def _some(self, ids: npt.NDArray[np.int32]) -> Floats:
        write(self._device, self._ids, ids, wait=True)
        self._tape.run((len(ids), *[0] * (N_COUNTS - 1)))
        rows: Floats = read(self._out, len(ids), self._device.queue)
        return rows
