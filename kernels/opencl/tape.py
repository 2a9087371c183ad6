"""Command lists (recorded graphs): kernels with bound arguments, replayed without setting any.

A launcher (``matmul.matmul`` and its like) checks shapes, binds a kernel's arguments and
puts it on a tape. All that changes from step to step lies in device buffers, and in the
sizes of grids that follow the batch: ``Per(TOKENS, 8)`` is "one per eight tokens".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyopencl as cl
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import DeviceError
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.signature import Arguments, signature
from gguf_serve.kernels.opencl.tensor import Tensor, zeros
from gguf_serve.kernels.opencl.tuning import power_of_two
from gguf_serve.kernels.opencl.work import NO_WORK, Work

# What a step counts, in the order of the `counts` buffer that kernels read.
# ADAPTED: whether any of its tokens has an adapter.
TOKENS, OUTPUTS, TILES, PARTS, SEQUENCES, ADAPTED = range(6)
N_COUNTS = 6
MAX_GEOMETRIES = 512  # distinct counts whose grid sizes are kept
FREE_GROUP = 64  # work-items of a GPU's work-group that share nothing
GROUPS_PER_UNIT = 4  # of those, before they become larger


class Per(Struct, frozen=True):
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


def free_groups(size: Sequence[int], most: int, n_groups: int) -> tuple[int, ...]:
    """Work-groups for ``size`` work-items that share nothing: of powers of two that divide it, at
    most ``most`` items, and no fewer than ``n_groups`` groups where there are as many items."""
    room = power_of_two(min(most, math.prod(size) // n_groups))
    local = []
    for n in size:
        local.append(math.gcd(n, room))
        room //= local[-1]
    return tuple(local)


class Launch(Struct, frozen=True):
    """One bound kernel; ``local`` None: see free_groups, with ``free`` its limits. ``only``: the
    count without which a step does not launch it."""

    kernel: Any
    grid: Grid
    local: tuple[int, ...] | None
    name: str
    work: Work = NO_WORK
    free: tuple[int, int] = (1, 1)
    only: int | None = None

    def global_size(self, counts: Counts) -> tuple[int, ...]:
        if self.only is not None and not counts[self.only]:
            return (0,) * len(self.grid)
        return tuple(g.size(counts) if isinstance(g, Per) else g for g in self.grid)

    def local_size(self, global_size: Sequence[int]) -> tuple[int, ...]:
        return self.local or free_groups(global_size, *self.free)


class Noted(Struct, frozen=True):
    """A launch as ``Tape.add`` is told of it. ``writes``: all of the rows of one token, a row or
    ``slots`` of them, of which more may be made by the same launch."""

    source: str
    name: str
    defines: Sequence[str]
    args: Arguments
    grid: Grid
    local: tuple[int, ...] | None
    work: Work
    writes: Tensor | None
    slots: int = 1


class Tape:
    """A command list: launches on one device, in their order.

    ``tokens`` may be set to OUTPUTS for what is recorded next: then these rows are all the tokens
    that there are. Its kernels must get a ``counts`` buffer that says the same. ``known`` may be
    set to the counts of what is recorded next, if these are the same whenever it is run.
    """

    def __init__(self, device: Device, programs: Programs) -> None:
        self.device = device
        self.programs = programs
        self.tokens = TOKENS
        self.known: Counts | None = None
        self._launches: list[Launch] = []
        self._only: int | None = None  # of what is recorded next, see Launch
        self._last: Noted | None = None  # not bound yet, since what comes next may extend it
        self._bound: list[Sequence[Any]] = []  # a kernel does not keep its buffers alive
        self._geometries: dict[Counts, list[tuple[Any, tuple[int, ...], tuple[int, ...]]]] = {}
        self._arrivals: Tensor | None = None

    @property
    def launches(self) -> list[Launch]:
        """All of them, bound."""
        self.settle()
        return self._launches

    @property
    def row_written(self) -> Tensor | None:
        """What the last launch writes, if it is a token's row and the launch can be extended."""
        last = self.extensible
        return None if last is None or last.slots > 1 else last.writes

    @property
    def extensible(self) -> Noted | None:
        """The last launch, if it can be extended."""
        return None if self._last is None or self._last.writes is None else self._last

    @property
    def arrivals(self) -> Tensor:
        """A counter of work-items, 0 between launches; those that use it follow each other."""
        if self._arrivals is None:
            self._arrivals = zeros(self.device, (1,), np.int32)
        return self._arrivals

    def add(
        self,
        source: str,
        name: str,
        defines: Sequence[str],
        args: Arguments,
        grid: Grid,
        local: tuple[int, ...] | None = None,
        work: Work = NO_WORK,
        *,
        writes: Tensor | None = None,
        slots: int = 1,
    ) -> None:
        """Bind ``args``, by the names of the kernel's parameters, and record its launch.

        Those that are None are left out, those that are given bring the define of their
        ``#ifdef`` (signature.py); ArgumentError, maybe only when the next launch is recorded, if
        they are not what the kernel takes. ``work`` is what profiles compare its time with;
        ``writes`` and ``slots``: see Noted.
        """
        self.settle()
        if self.tokens != TOKENS:
            grid = tuple(g.of(self.tokens) if isinstance(g, Per) else g for g in grid)
            work = replace(work, count=self.tokens) if work.count == TOKENS else work
        if self.known is not None:
            grid = tuple(g.size(self.known) if isinstance(g, Per) else g for g in grid)
        if self._only is not None:  # what extends it would not be launched either
            writes = None
        self._last = Noted(source, name, defines, args, grid, local, work, writes, slots)
        if writes is None:
            self.settle()

    def extend(
        self,
        defines: Sequence[str],
        args: Arguments,
        *,
        grid: Grid | None = None,
        writes: Tensor | None = None,
    ) -> None:
        """Have the last launch do more with what it writes, maybe in another grid; then it
        ``writes`` a row of which still more may be made."""
        last = self._last
        assert last is not None
        self._last = replace(
            last, defines=[*last.defines, *defines], args={**last.args, **args},
            grid=grid or last.grid, writes=writes, slots=1,
        )  # fmt: skip
        if writes is None:
            self.settle()

    @contextmanager
    def only_if(self, count: int) -> Iterator[None]:
        """What is recorded meanwhile is launched only in steps that have such a count."""
        self.settle()
        self._only = count
        yield
        self._only = None

    def settle(self) -> None:
        """Bind the last launch as it is."""
        if self._last is None:
            return
        last, self._last = self._last, None
        defines, values = signature(last.source, last.name).bind(last.args, last.defines)
        kernel = self.programs.kernel(last.source, last.name, defines)
        kernel.set_args(*values)
        self._bound.append(values)
        label = f"{last.name}({' '.join(defines)})"
        self._launches.append(
            Launch(kernel, last.grid, last.local, label, last.work, self._free(kernel), self._only)
        )

    def _free(self, kernel: Any) -> tuple[int, int]:
        """The limits of free_groups. A CPU gains nothing by them, and PoCL would compile each size
        for minutes."""
        if self.device.is_simd or self.device.info.kind == "cpu" or self.device.is_meta:
            return 1, 1
        info, (raw,) = cl.kernel_work_group_info.WORK_GROUP_SIZE, self.device.context.devices
        most = kernel.get_work_group_info(info, raw)
        return min(FREE_GROUP, most), GROUPS_PER_UNIT * self.device.info.compute_units

    def joined(self, other: Tape) -> Tape:
        """The launches of this tape, then of the other; not copied."""
        both = Tape(self.device, self.programs)
        both._launches = self.launches + other.launches
        both._bound = self._bound + other._bound
        return both

    def run(self, counts: Counts) -> None:
        """Enqueue every launch for a step of these counts; does not wait.

        DeviceError says which kernel the device does not take, and in what sizes.
        """
        queue, enqueue = self.device.queue, cl.enqueue_nd_range_kernel
        for kernel, global_size, local_size in self._geometry(counts):
            try:
                enqueue(queue, kernel, global_size, local_size)
            except cl.Error as error:
                raise DeviceError(
                    f"{self.device.info.name}: {kernel.function_name} of {global_size} work-items "
                    f"in groups of {local_size}: {error}"
                ) from error

    def _geometry(self, counts: Counts) -> list[tuple[Any, tuple[int, ...], tuple[int, ...]]]:
        found = self._geometries.get(counts)
        if found is None:
            if len(self._geometries) >= MAX_GEOMETRIES:
                self._geometries.clear()
            sizes = [(x, x.global_size(counts)) for x in self.launches]
            found = self._geometries[counts] = [
                (x.kernel, size, x.local_size(size)) for x, size in sizes if 0 not in size
            ]
        return found
