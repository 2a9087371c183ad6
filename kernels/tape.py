"""Recorded launches: kernels with bound arguments, replayed without setting any.

A launcher (``matmul.matmul`` and its like) checks shapes, binds a kernel's arguments and
puts it on a tape. All that changes from step to step lies in device buffers, and in the
sizes of grids that follow the batch: ``Per(TOKENS, 8)`` is "one per eight tokens".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyopencl as cl

from kernels.device import Device
from kernels.program import Programs
from kernels.work import NO_WORK, Work

# What a step counts, in the order of the `counts` buffer that kernels read.
TOKENS, OUTPUTS, TILES, PARTS, SEQUENCES = range(5)
N_COUNTS = 5
MAX_GEOMETRIES = 512  # distinct counts whose grid sizes are kept


@dataclass(frozen=True, slots=True)
class Per:
    """A grid size that follows a count: ceil(counts[index] / tile) * times + plus, 0 for none."""

    index: int
    tile: int = 1
    times: int = 1
    plus: int = 0

    def size(self, counts: Sequence[int]) -> int:
        n = counts[self.index]
        return -(-n // self.tile) * self.times + self.plus if n else 0

    def of(self, tokens: int) -> Per:
        """The same where counts[tokens] takes the place of the step's tokens."""
        return replace(self, index=tokens) if self.index == TOKENS else self


Grid = tuple[int | Per, ...]
Counts = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Launch:
    """One bound kernel; ``local`` None leaves the work-group size to the driver."""

    kernel: Any
    grid: Grid
    local: tuple[int, ...]
    name: str
    work: Work = NO_WORK

    def global_size(self, counts: Counts) -> tuple[int, ...]:
        return tuple(g.size(counts) if isinstance(g, Per) else g for g in self.grid)


class Tape:
    """A sequence of launches on one device.

    ``tokens`` may be set to OUTPUTS for what is recorded next: then these rows are all the tokens
    that there are. Its kernels must get a ``counts`` buffer that says the same.
    """

    def __init__(self, device: Device, programs: Programs) -> None:
        self.device = device
        self.programs = programs
        self.tokens = TOKENS
        self.launches: list[Launch] = []
        self._bound: list[Sequence[Any]] = []  # a kernel does not keep its buffers alive
        self._geometries: dict[Counts, list[tuple[Any, tuple[int, ...], tuple[int, ...]]]] = {}

    def add(
        self,
        source: str,
        name: str,
        defines: Sequence[str],
        args: Sequence[Any],
        grid: Grid,
        local: tuple[int, ...] | None = None,
        work: Work = NO_WORK,
    ) -> None:
        """Bind ``args`` (buffers and NumPy scalars) to a kernel and record its launch.

        ``work`` is what profiles compare its time with.
        """
        kernel = self.programs.kernel(source, name, defines)
        kernel.set_args(*args)
        self._bound.append(args)
        label = f"{name}({' '.join(defines)})"
        if self.tokens != TOKENS:
            grid = tuple(g.of(self.tokens) if isinstance(g, Per) else g for g in grid)
            work = replace(work, count=self.tokens) if work.count == TOKENS else work
        self.launches.append(Launch(kernel, grid, local or (1,) * len(grid), label, work))

    def joined(self, other: Tape) -> Tape:
        """The launches of this tape, then of the other; not copied."""
        both = Tape(self.device, self.programs)
        both.launches = self.launches + other.launches
        both._bound = self._bound + other._bound
        return both

    def run(self, counts: Counts) -> None:
        """Enqueue every launch for a step of these counts; does not wait."""
        queue, enqueue = self.device.queue, cl.enqueue_nd_range_kernel
        for kernel, global_size, local_size in self._geometry(counts):
            enqueue(queue, kernel, global_size, local_size)

    def _geometry(self, counts: Counts) -> list[tuple[Any, tuple[int, ...], tuple[int, ...]]]:
        found = self._geometries.get(counts)
        if found is None:
            if len(self._geometries) >= MAX_GEOMETRIES:
                self._geometries.clear()
            sized = [(x.kernel, x.global_size(counts), x.local) for x in self.launches]
            found = self._geometries[counts] = [s for s in sized if 0 not in s[1]]
        return found
