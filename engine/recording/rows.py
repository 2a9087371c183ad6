"""What recorders deal in: rows before they have memory, the launches between them, and how these
find memory and tape in the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, cast

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from gguf_serve.engine.recording.step import Context, Step, StepInputs, Surroundings
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.kernels.opencl.tape import OUTPUTS, TOKENS, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.rows.norm import NormWeights, PostNorm

FLOAT = np.dtype(np.float32)


class Value(Struct, eq=False):
    """What some launches write and others read: ``times`` rows of ``width`` for each token, or for
    each of ``n``, where their number is known while they are noted.

    ``floats``: who writes it needs floats, to make integers of; ``memory``: its own, which
    outlives the step; ``n_reads``: launches noted so far that read it.
    """

    width: int
    times: int = 1
    dtype: np.dtype[Any] = FLOAT
    floats: bool = False
    memory: Tensor | None = None
    n: int | None = None
    n_reads: int = 0

    @property
    def rows(self) -> Rows:
        """All of it."""
        return Rows(self, self.width, 0, self.width, self.n)


class Rows(Struct, frozen=True, eq=False):
    """A value in rows of ``row`` values, which are its own, or shares or multiples of them; of
    these ``width`` columns from ``at`` on, and where rows are counted the first ``n``."""

    value: Value
    width: int
    at: int
    row: int
    n: int | None = None

    @property
    def heads(self) -> int:
        """Rows that each of the value's is cut into, where they are those of tokens."""
        return 1 if self.n is not None else self.value.width // self.row

    @property
    def count(self) -> int:
        """The number of rows that are counted."""
        assert self.n is not None, "rows of tokens, of which each step has as many as it has"
        return self.n

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the value, in rows like the value's."""
        return (self.width, self.row, self.n) == (self.value.width, self.value.width, self.value.n)

    def split(self, *widths: int) -> list[Rows]:
        """Columns side by side, the first ones of so many each."""
        found, at = list[Rows](), self.at
        for width in widths:
            found.append(replace(self, width=width, at=at))
            at += width
        return found

    def by_head(self, n: int) -> Rows:
        """The whole row as ``n`` rows."""
        assert self.width == self.value.width
        return Rows(self.value, self.width // n, 0, self.width // n)

    def whole(self) -> Rows:
        """All columns of all heads."""
        return self.value.rows

    def reshaped(self, n: int) -> Rows:
        """The same values in ``n`` rows."""
        assert self.width == self.row
        width = self.count * self.row // n
        return Rows(self.value, width, 0, width, n)

    def first(self, n: int) -> Rows:
        """The first ``n`` rows."""
        assert n <= self.count
        return replace(self, n=n)

    def cut(self, tensor: Tensor) -> Tensor:
        """The memory of the value, or a part of it that has the same rows, as these rows."""
        if self.row == self.value.width and self.n == self.value.n:
            return tensor
        columns, *rest = tensor.shape[1] * self.row // self.value.width, *tensor.shape[2:]
        n = math.prod(tensor.shape) // math.prod((columns, *rest)) if self.n is None else self.n
        return Tensor(tensor.buffer, (n, columns, *rest), tensor.dtype)


class Launch(Struct, frozen=True, eq=False, dict=True):
    """One call of a launcher, on the device of ``at``. ``operands``: rows that a matrix reads, in
    whatever form suits it; ``reads``: what is read as floats.

    ``writes_forms``: it writes any form of its result; ``norm``: it is one, of whole rows;
    ``normed``: it is one of columns, or of groups; ``over``: it may write over this input, and
    ``addend`` is what it adds to that; ``can_add``: it can add to what it writes; ``mixes``: a
    token's result depends on other tokens; ``gathers``: it reads the rows of the tokens whose
    logits are wanted; ``of_rows``: these are all the tokens that there are; ``n_tiles``: of
    attention, where it is known.

    Planning adds ``names``: other values in the place of those that ``run`` knows; ``adds``: it
    adds to what it writes; ``post``: rows whose norm is added to what is normalized; ``source``:
    no launch at all, but a transfer of this value from the device ``source_at``.
    """

    run: Callable[[Emission], None]
    at: int
    reads: tuple[Rows, ...]
    operands: tuple[tuple[Rows, Linear], ...]
    writes: tuple[Rows, ...]
    writes_forms: bool = False
    normed: bool = False
    norm: NormWeights | None = None
    over: Rows | None = None
    addend: Rows | None = None
    can_add: bool = False
    mixes: bool = False
    gathers: bool = False
    of_rows: bool = False
    n_tiles: int = 0
    names: Mapping[Value, Value] = field(default_factory=dict)
    adds: bool = False
    post: tuple[Rows, NormWeights] | None = None
    source: Value | None = None
    source_at: int = 0

    @cached_property
    def inputs(self) -> list[Value]:
        """What it reads."""
        rows = (*self.reads, *(x for x, _ in self.operands))
        return list(dict.fromkeys(x.value for x in rows))

    @cached_property
    def outputs(self) -> list[Value]:
        """What it writes."""
        return list(dict.fromkeys(rows.value for rows in self.writes))

    @cached_property
    def touches(self) -> list[Value]:
        return list(dict.fromkeys([*self.inputs, *self.outputs]))

    def renamed(self, names: Mapping[Value, Value]) -> Launch:
        """The same with other values."""

        def of(rows: Rows) -> Rows:
            return replace(rows, value=names.get(rows.value, rows.value))

        return replace(
            self, reads=tuple(map(of, self.reads)), writes=tuple(map(of, self.writes)),
            operands=tuple((of(x), linear) for x, linear in self.operands),
            over=None if self.over is None else of(self.over),
            addend=None if self.addend is None else of(self.addend),
            names={**names, **{old: names.get(new, new) for old, new in self.names.items()}},
        )  # fmt: skip


class Emission(Struct, frozen=True):
    """A launch on its way to a tape. ``surroundings``: of its device, with the inputs of the tokens
    that there are; ``held``: what memory values have; ``shared``: see Plan."""

    step: Step
    surroundings: Surroundings
    launch: Launch
    held: Mapping[Value, Activations]
    shared: Mapping[Value, Value]

    @property
    def tape(self) -> Tape:
        return self.step.tape

    @property
    def tile(self) -> int:
        """Tokens per pass over the weights."""
        return self.step.tile

    @property
    def context(self) -> Context:
        """A decoder's surroundings."""
        return cast(Context, self.surroundings)

    @property
    def inputs(self) -> StepInputs:
        return self.context.inputs

    @property
    def counts(self) -> Tensor:
        """What says how many rows there are."""
        return self.surroundings.counts

    def operand(self, rows: Rows) -> Activations:
        """Rows in the forms that they have."""
        held = self._held(rows.value)
        values, codes, scales = (
            None if t is None else rows.cut(t) for t in (held.values, held.codes, held.scales)
        )
        return Activations(rows.row, values, codes, scales, held.spans)

    def floats(self, rows: Rows) -> Tensor:
        """float32 [n, width] of the rows' value, or of its heads."""
        values = self._held(rows.value).values
        assert values is not None
        return rows.cut(values)

    def target(self, rows: Rows, *, add: bool = False) -> tuple[Tensor, bool]:
        """Where a launch that can add writes rows, and whether it adds to what is there, as
        ``add`` says or because nothing else is done with them."""
        return self.floats(rows), add or self.launch.adds

    def is_over(self, x: Rows, out: Rows) -> bool:
        """Whether these have the same memory."""
        return self._root(x) is self._root(out)

    @property
    def post(self) -> PostNorm | None:
        """What is done to the stream before the norm that this is."""
        if self.launch.post is None:
            return None
        rows, weights = self.launch.post
        assert weights.weight is not None
        return PostNorm(self.floats(rows), weights.weight, weights.eps)

    @property
    def gathered(self) -> tuple[int, Tensor | None]:
        """What a norm counts, and which rows it reads, if not all."""
        return (OUTPUTS, self.inputs.rows) if self.launch.gathers else (TOKENS, None)

    def _held(self, value: Value) -> Activations:
        return self.held[self.launch.names.get(value, value)]

    def _root(self, rows: Rows) -> Value:
        return root_of(self.launch.names.get(rows.value, rows.value), self.shared)


def root_of(value: Value, shared: Mapping[Value, Value]) -> Value:
    """The value that has the memory of this one's floats."""
    while value in shared:
        value = shared[value]
    return value
