"""The memory of a step: who has which of a few blocks, from the first to the last launch that
touches it.

All is known beforehand, so blocks are given away in the order of their sizes: the largest values
first, and each to the first block that is free for as long. Plans for different kinds of steps
use the same blocks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from gguf_serve.engine.recording.planning import Plan, forms_read, touched
from gguf_serve.engine.recording.rows import Launch, Value
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tensor import Tensor, empty
from gguf_serve.kernels.quantization.activations import (
    Activations,
    code_shapes,
    takes_bytes,
    wants_spans,
)

COMPONENTS = ("values", "codes", "scales")  # of Activations
Component = tuple[Value, str]


class _Like(Struct, frozen=True):
    """What a component of a value needs: its device, shape and elements."""

    at: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Layout:
    """Which block each component of a plan's values has. ``sizes``: bytes of the blocks of each
    device, the largest first."""

    def __init__(
        self,
        plan: Plan,
        devices: Sequence[Device],
        n_tokens: int = 0,
        n_outputs: int = 0,
        *,
        exact: bool = False,
    ) -> None:
        """``exact``: integers have 15 bits and scales of their own, whoever reads them."""
        self._plan, self._devices, self._exact = plan, devices, exact
        self._n_rows = n_tokens, n_outputs
        self._uses = touched(plan.launches)
        self._forms = forms_read(plan.launches)
        self._writers = _writers(plan.launches)
        self._share()
        self._made = {value: self._forms_of(value) for value in self._writers}
        self._components = self._needed_components()
        self.sizes: list[list[int]] = [[] for _ in devices]
        self._block: dict[Component, int] = {}
        self._place()

    def _share(self) -> None:
        """Have launches write over inputs that nobody reads afterwards."""
        plan = self._plan
        ends = defaultdict[Value, int](int)
        for value, uses in self._uses.items():
            root = plan.root(value)
            ends[root] = max(ends[root], uses[-1])
        for i, launch in enumerate(plan.launches):
            for value in launch.outputs:
                first = self._uses[value][0] == i and value not in plan.shared
                integers = launch.writes_forms and False in self._forms[value]
                if not first or value.memory is not None or integers:
                    continue
                over = self._written_over(value, launch, ends, i)
                if over is not None:
                    plan.shared[value] = over
                    ends[plan.root(over)] = ends[value]

    def _written_over(
        self, value: Value, launch: Launch, ends: dict[Value, int], i: int
    ) -> Value | None:
        """The value whose memory a launch may write its result to."""
        for rows in (launch.over, launch.addend):
            if rows is None or not (rows.is_whole or rows.heads > 1):
                continue
            over = rows.value
            alike = _shape(over) == _shape(value)
            ended = ends[self._plan.root(over)] == i and self._plan.root(over).memory is None
            if alike and ended and over in self._writers:
                return over
        return None

    def _forms_of(self, value: Value) -> Forms:
        """The forms that a value is written in."""
        writer = self._writers[value]
        readers, floats = list[Linear](), value.floats or value.memory is not None
        for i in self._uses[value]:
            launch = self._plan.launches[i]
            readers += [linear for rows, linear in launch.operands if rows.value is value]
            floats |= any(rows.value is value for rows in launch.reads)
        return wanted_forms(
            self._devices[writer.at], readers, floats=floats or not readers,
            normed=writer.normed or writer.norm is not None, exact=self._exact,
        )  # fmt: skip

    def _needed_components(self) -> dict[Component, _Like]:
        found = dict[Component, _Like]()
        for value, writer in self._writers.items():
            of_rows = writer.of_rows or writer.gathers
            n = (value.n or self._n_rows[of_rows]) * value.times
            forms = self._made[value]
            if forms.floats and self._plan.root(value).memory is None:
                found[value, "values"] = _Like(writer.at, (n, value.width), value.dtype)
            if forms.integers:
                likes = code_shapes(n, value.width, bytes=forms.bytes)
                for name, (shape, dtype) in zip(COMPONENTS[1:], likes, strict=True):
                    found[value, name] = _Like(writer.at, shape, np.dtype(dtype))
        return found

    def _place(self) -> None:
        """Give components blocks."""
        wanted = dict[Component, tuple[int, int, int]]()  # device, bytes, launches as bits
        for (value, name), like in self._components.items():
            uses = self._uses[value]
            span = (2 << uses[-1]) - (1 << uses[0])
            key = self._plan.root(value) if name == "values" else value, name
            _, n_bytes, others = wanted.get(key, (like.at, 0, 0))
            wanted[key] = like.at, max(n_bytes, like.n_bytes), others | span
        busy: list[list[int]] = [[] for _ in self._devices]
        for key, (at, n_bytes, span) in sorted(wanted.items(), key=lambda one: -one[1][1]):
            blocks = busy[at]
            i = next((i for i, others in enumerate(blocks) if not others & span), len(blocks))
            if i == len(blocks):
                blocks.append(0)
                self.sizes[at].append(n_bytes)
            blocks[i] |= span
            self._block[key] = i

    def bind(self, blocks: Sequence[Sequence[Tensor]]) -> dict[Value, Activations]:
        """The values in these blocks, by device."""
        given = (value for value in self._uses if value not in self._writers)
        found = {value: Activations(value.width, value.memory) for value in given}
        return found | {value: self._bound(value, blocks) for value in self._writers}

    def _bound(self, value: Value, blocks: Sequence[Sequence[Tensor]]) -> Activations:
        def component(name: str) -> Tensor | None:
            root = self._plan.root(value) if name == "values" else value
            if name == "values" and root.memory is not None:
                return root.memory
            like = self._components.get((value, name))
            if like is None:
                return None
            block = blocks[like.at][self._block[root, name]]
            return Tensor(block.buffer, like.shape, like.dtype)

        values, codes, scales = (component(name) for name in COMPONENTS)
        return Activations(value.width, values, codes, scales, self._made[value].spans)


class Forms(Struct, frozen=True):
    """How rows are written: as floats, as integers, these of 8 bits or with scales per span."""

    floats: bool
    integers: bool
    bytes: bool = False
    spans: bool = False


def _shape(value: Value) -> tuple[object, ...]:
    return value.n, value.times, value.width, value.dtype


def wanted_forms(
    device: Device,
    readers: Sequence[Linear],
    *,
    floats: bool = False,
    normed: bool = False,
    exact: bool = False,
) -> Forms:
    """What the matrices that read some rows take together, floats too if asked for.

    ``normed``: norm() alone writes them, so that blocks may share scales; ``exact``: neither that
    nor fewer bits than 15.
    """
    kinds = set[bool]().union(*(linear.reads_floats for linear in readers))
    if False not in kinds:
        return Forms(floats or True in kinds, integers=False)
    if exact:
        return Forms(floats or True in kinds, integers=True)
    matrices = [linear.matrix for linear in readers if False in linear.reads_floats]
    bytes = takes_bytes(device, matrices)
    spans = normed and not bytes and wants_spans(device, matrices)
    return Forms(floats or True in kinds, integers=True, bytes=bytes, spans=spans)


def _writers(launches: Sequence[Launch]) -> dict[Value, Launch]:
    """The first launch that writes each value."""
    found = dict[Value, Launch]()
    for launch in launches:
        for value in launch.outputs:
            found.setdefault(value, launch)
    return found


def shared_blocks(layouts: Sequence[Layout], devices: Sequence[Device]) -> list[list[Tensor]]:
    """Blocks for all of these, one of them at a time, by device."""
    found = []
    for at, device in enumerate(devices):
        listed = [layout.sizes[at] for layout in layouts]
        n = max(map(len, listed), default=0)
        sizes = [max(sizes[i] for sizes in listed if i < len(sizes)) for i in range(n)]
        found.append([empty(device, (size,), np.uint8) for size in sizes])
    return found
