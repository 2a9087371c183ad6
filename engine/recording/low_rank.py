"""What adapters add to a matrix, as its kernels take it: all their updates in one pair of matrices.

Columns between the two belong to one adapter each. Some may be reserved, for adapters that come
while the model is served: their values are zeros until then, and are written anew for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gguf_serve.engine.options import AdapterRoom
from gguf_serve.engine.recording.adapters import Adapted, Adapter, Floats, LowRank
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.packing import BLOCK
from gguf_serve.kernels.quantization.quants import by_name
from gguf_serve.kernels.quantization.weights import (
    Matrix,
    PackJob,
    RawMatrix,
    jobs_of,
    run_job,
)


class LowRankMatrices(Struct, frozen=True):
    """Updates of a matrix: a [columns, n_cols] of all adapters one below the other, b [n_rows,
    columns] side by side; owner: int32 [columns], the adapter of each column. Of experts, a and
    b have a matrix for each; of the embedding, a has a row for each token."""

    a: Matrix
    b: Matrix
    owner: Tensor


class Stack(Struct, frozen=True):
    """Updates of matrices below each other, each with the first row of its matrix."""

    updates: tuple[tuple[LowRank, int], ...]
    n_rows: int
    n_cols: int

    @property
    def width(self) -> int:
        """Columns between A and B."""
        return -(-sum(len(update.a) for update, _ in self.updates) // BLOCK) * BLOCK

    @property
    def owner(self) -> npt.NDArray[np.int32]:
        """The adapter of each column."""
        owner = np.zeros(self.width, np.int32)
        of_each = [[update.index] * len(update.a) for update, _ in self.updates]
        found = [index for some in of_each for index in some]
        owner[: len(found)] = found
        return owner

    def matrices(self, present: Mapping[int, Adapter]) -> tuple[Floats, Floats]:
        """A [width, n_cols] and B [n_rows, width]; ``present``: those in reserved columns."""
        a = np.zeros((self.width, self.n_cols), np.float32)
        b = np.zeros((self.n_rows, self.width), np.float32)
        at = 0
        for update, row in self.updates:
            now = update.of(present.get(update.index)) if update.reserved else update
            if now is not None:
                a[at : at + len(now.a)] = now.a
                b[row : row + len(now.b), at : at + len(now.a)] = now.b
            at += len(update.a)
        return a, b


class Reservation(Struct, frozen=True):
    """Matrices on a device that have columns for adapters which may come, and what else is
    in them."""

    matrices: LowRankMatrices
    stack: Stack

    @property
    def names(self) -> set[str]:
        """The tensors whose updates may come."""
        return {update.reserved for update, _ in self.stack.updates if update.reserved}

    def is_of(self, index: int) -> bool:
        """Whether the adapter of this number has columns here."""
        return any(update.index == index for update, _ in self.stack.updates)

    def jobs(self, present: Mapping[int, Adapter]) -> list[PackJob]:
        """What writes the matrices as they are with these adapters in the reserved columns."""
        a, b = self.stack.matrices(present)
        return [*jobs_of(self.matrices.a, float_raw(a)), *jobs_of(self.matrices.b, float_raw(b))]


class OnDevice(Struct, frozen=True):
    """What one device has reserved."""

    device: Device
    programs: Programs
    reservations: Sequence[Reservation]

    def write(self, jobs: Sequence[PackJob]) -> None:
        for job in jobs:
            run_job(self.device, self.programs, job)


class Reserved(Struct, frozen=True):
    """Room for adapters of a model. ``first``: the number of the first reserved adapter in its
    matrices, which the model's own may precede."""

    base: Adapted
    room: AdapterRoom
    first: int
    devices: Sequence[OnDevice]

    @property
    def names(self) -> set[str]:
        """The tensors that adapters may change."""
        return {
            name
            for each in self.devices
            for reservation in each.reservations
            for name in reservation.names
        }


def stacked(matrices: Iterable[tuple[int, Sequence[LowRank]]], n_cols: int) -> Stack | None:
    """Of matrices below each other, by their rows and updates; None: there are no updates."""
    found, row = list[tuple[LowRank, int]](), 0
    for n_rows, updates in matrices:
        found += [(update, row) for update in updates]
        row += n_rows
    return Stack(tuple(found), row, n_cols) if found else None


def float_raw(array: Floats) -> RawMatrix:
    """A matrix of floats that is not in the file."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return RawMatrix(data, by_name("F32"), *array.shape)
