"""The recorder of the language that sublayers are written in (graph.py has its verbs).

A mixer or FFN is a function from rows to rows. It runs once, when the model is built: what it does
is noted, and nothing is launched. Then everything is known that is worth knowing before a launch:
which matrices read which rows, and who touches them last. So the recorder decides

- in which forms rows are written: floats, or integers of 8 or 16 bits with scales per block or per
  span, whichever the matrices that read them take together. A launch that can write these does;
  after one that cannot, a copy does;
- which memory they have: a block belongs to rows from their first writer to their last reader, then
  to others, of this sublayer or of the next one;
- what a launch may write over: its own input, if nobody reads that afterwards;
- where the result goes: its last matrix adds to the residual stream.

A recording for each mode of a step replays the same launches onto its tape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from engine.models.step import Context, Step, Workspace
from engine.tensors import Linear
from kernels.matmul import Activations
from kernels.norm import UNCHANGED, norm
from kernels.tape import Tape
from kernels.tensor import Tensor


@dataclass(eq=False, slots=True)
class Value:
    """What some launches write and others read: ``times`` rows of ``width`` for each token."""

    width: int
    times: int
    readers: list[Linear] = field(default_factory=list)  # matrices
    reads_floats: bool = False  # something else does
    writers: list[Launch] = field(default_factory=list)
    touched: list[Launch] = field(default_factory=list)  # in order: by writers and readers
    held: Activations | None = None  # once it is planned

    @property
    def is_input(self) -> bool:
        return not self.writers


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """A value, or ``width`` of its columns from ``at`` on, or with ``heads`` its rows cut into so
    many, each a row of its own."""

    value: Value
    width: int
    at: int = 0
    heads: int = 1

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
        return Rows(self.value, self.width // n, 0, n)


@dataclass(eq=False, slots=True)
class Launch:
    """One call of a launcher. ``writes_forms``: it writes any form of its result; ``normed``: it
    is a norm, which can give blocks the same scale; ``over``: it may write over this input."""

    run: Callable[[Emission], None]
    reads: tuple[Rows, ...]
    writes: tuple[Rows, ...]
    writes_forms: bool = False
    normed: bool = False
    over: Rows | None = None


class Recorder:
    """Notes the launches of one sublayer, and plans them."""

    def __init__(self, context: Context) -> None:
        self.context, self.h = context, context.h
        self._launches: list[Launch] = []
        self.result: Rows | None = None

    def input(self, width: int) -> Rows:
        """Rows that the sublayer is given."""
        return Rows(Value(width, 1), width)

    def rows(self, width: int, times: int = 1) -> Rows:
        """Rows that a launch will write."""
        return Rows(Value(width, times), width)

    def state(self, *shape: int) -> Tensor:
        """float32 [slots, *shape], which sequences keep from step to step."""
        return self.context.states.rows(self.context.device, *shape)

    def launch(
        self,
        run: Callable[[Emission], None],
        *,
        reads: Sequence[Rows] = (),
        operands: Iterable[tuple[Rows, Linear]] = (),
        writes: Sequence[Rows],
        writes_forms: bool = False,
        normed: bool = False,
        over: Rows | None = None,
    ) -> None:
        """Note a launch. ``reads``: rows that it reads as floats; ``operands``: those that a
        matrix reads, in whatever form suits it."""
        operands = list(operands)
        inputs = (*reads, *(rows for rows, _ in operands))
        launch = Launch(run, inputs, tuple(writes), writes_forms, normed, over)
        self._launches.append(launch)
        for rows in reads:
            rows.value.reads_floats = True
        for rows, linear in operands:
            rows.value.readers.append(linear)
        for rows in writes:
            rows.value.writers.append(launch)
        for value in dict.fromkeys(rows.value for rows in (*inputs, *writes)):
            value.touched.append(launch)

    def finish(self, result: Rows) -> None:
        """Plan what was noted; ``result`` goes wherever ``emit`` is told."""
        self.result = result
        self._insert_copies()
        _plan_memory(self._launches, self.context.workspace, result.value)

    def emit(self, step: Step, x: Activations, out: Tensor, *, add: bool) -> None:
        """Put the launches on a step's tape."""
        assert self.result is not None
        emission = Emission(step, x, self.result.value, out, add)
        for launch in self._launches:
            launch.run(emission)

    def _insert_copies(self) -> None:
        """Where matrices want integers of a writer that has floats only."""
        launches = list[Launch]()
        for launch in self._launches:
            launches.append(launch)
            for value in dict.fromkeys(rows.value for rows in launch.writes):
                if value.writers[-1] is launch and _wants_copy(value, launch):
                    launches.append(_copy(value, launch))
        self._launches = launches


@dataclass(frozen=True, slots=True)
class Emission:
    """The launches of a sublayer on their way to a tape."""

    step: Step
    _x: Activations
    _result: Value
    _out: Tensor
    _add: bool

    @property
    def tape(self) -> Tape:
        return self.step.tape

    def operand(self, rows: Rows) -> Activations:
        """Rows in the forms that they have."""
        return self._x if rows.value.is_input else _planned(rows.value)

    def floats(self, rows: Rows) -> Tensor:
        """float32 [n, width] of the rows' value, or of its heads."""
        values = self.operand(rows).values
        assert values is not None
        if rows.heads == 1:
            return values
        n, width = values.shape
        return Tensor(values.buffer, (n * rows.heads, width // rows.heads), values.dtype)

    def target(self, rows: Rows) -> tuple[Tensor, bool]:
        """Where a matrix writes its rows, and whether it adds to what is there."""
        if rows.value is self._result:
            return self._out, self._add
        return self.floats(rows), False


def _planned(value: Value) -> Activations:
    assert value.held is not None, "rows that no launch has written"
    return value.held


def _forms(value: Value) -> set[bool]:
    """The forms that matrices read: True for floats, False for integers."""
    return set[bool]().union(*(linear.reads_floats for linear in value.readers))


def _wants_copy(value: Value, last: Launch) -> bool:
    whole = len(value.writers) == 1 and last.writes_forms
    return False in _forms(value) and not whole


def _copy(value: Value, after: Launch) -> Launch:
    """The launch that makes integers of a value's floats."""
    rows = Rows(value, value.width)

    def run(e: Emission) -> None:
        held = _planned(value)
        assert held.values is not None
        norm(e.tape, held.values, UNCHANGED, replace(held, values=None), times=value.times)

    launch = Launch(run, (rows,), (rows,))
    value.reads_floats = True
    value.writers.append(launch)
    value.touched.insert(value.touched.index(after) + 1, launch)
    return launch


def _plan_memory(launches: Sequence[Launch], workspace: Workspace, result: Value) -> None:
    """Give every value memory from its first to its last launch."""
    blocks = dict[Value, list[Tensor]]()
    for launch in launches:
        for value in dict.fromkeys(rows.value for rows in launch.writes):
            if value.held is None and value is not result:
                over = _written_over(value, launch)
                if over is not None and over in blocks:
                    value.held, blocks[value] = over.held, blocks.pop(over)
                else:
                    value.held, blocks[value] = workspace.take(
                        value.width, value.readers, times=value.times,
                        floats=value.reads_floats or not value.readers, normed=launch.normed,
                    )  # fmt: skip
        for value in dict.fromkeys(rows.value for rows in (*launch.reads, *launch.writes)):
            if value.touched[-1] is launch:
                workspace.give(blocks.pop(value, []))


def _written_over(value: Value, launch: Launch) -> Value | None:
    """The value whose memory a launch may write its result to."""
    over = None if launch.over is None else launch.over.value
    if over is None or over.touched[-1] is not launch or False in _forms(value):
        return None
    if over.held is None or over.held.quantized:
        return None
    return over if (over.width, over.times) == (value.width, value.times) else None
