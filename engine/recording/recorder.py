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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from gguf_serve.engine.recording.step import Context, Step, Workspace
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.kernels.opencl.tape import Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.rows.norm import UNCHANGED, norm


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
    def outlives_the_mixers(self) -> bool:
        """Whether it is made before the layer changes the stream, and read after that."""
        return len({launch.early for launch in self.touched}) > 1


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

    def whole(self) -> Rows:
        """All columns of all heads."""
        return Rows(self.value, self.value.width)


@dataclass(eq=False, slots=True)
class Launch:
    """One call of a launcher. ``writes_forms``: it writes any form of its result; ``normed``: it
    is a norm, which can give blocks the same scale; ``over``: it may write over this input;
    ``early``: it comes before the layer changes the stream."""

    run: Callable[[Emission], None]
    reads: tuple[Rows, ...]
    writes: tuple[Rows, ...]
    writes_forms: bool = False
    normed: bool = False
    over: Rows | None = None
    early: bool = False

    @property
    def touches(self) -> list[Value]:
        return list(dict.fromkeys(rows.value for rows in (*self.reads, *self.writes)))


class Recorder:
    """Notes the launches of one sublayer, and plans them."""

    def __init__(self, context: Context) -> None:
        self.context, self.h = context, context.h
        self._launches: list[Launch] = []
        self._stream = self.input(context.h.n_embd)
        self._is_early = False
        self._result: Value | None = None

    def input(self, width: int) -> Rows:
        """Rows that the sublayer is given."""
        return Rows(Value(width, 1), width)

    def rows(self, width: int, times: int = 1) -> Rows:
        """Rows that a launch will write."""
        return Rows(Value(width, times), width)

    def state(self, *shape: int) -> Tensor:
        """float32 [slots, *shape], which sequences keep from step to step."""
        return self.context.states.rows(self.context.device, *shape)

    @contextmanager
    def early(self) -> Iterator[Rows]:
        """What is said inside happens before the layer changes the residual stream, which is
        what it may read."""
        self._is_early = True
        yield self._stream
        self._is_early = False

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
        launch = Launch(run, inputs, tuple(writes), writes_forms, normed, over, self._is_early)
        self._launches.append(launch)
        for rows in reads:
            rows.value.reads_floats = True
        for rows, linear in operands:
            rows.value.readers.append(linear)
        for rows in writes:
            rows.value.writers.append(launch)
        for value in launch.touches:
            value.touched.append(launch)

    def finish(self, result: Rows) -> None:
        """Plan what was noted; ``result`` goes wherever ``emit`` is told."""
        self._result = result.value
        self._insert_copies()
        _plan_memory(self._launches, self.context.workspace, result.value)

    def emit_early(self, step: Step, stream: Tensor) -> None:
        """Put what comes before the layer on a step's tape."""
        given = {self._stream.value: Activations(stream.shape[1], stream)}
        self._emit(Emission(step, given, None, stream, add=False), early=True)

    def emit(self, step: Step, input: Rows, x: Activations, out: Tensor, *, add: bool) -> None:
        """Put all else there: from ``x``, in the place of ``input``, to ``out``."""
        self._emit(Emission(step, {input.value: x}, self._result, out, add), early=False)

    def _emit(self, emission: Emission, *, early: bool) -> None:
        for launch in self._launches:
            if launch.early is early:
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
    """The launches of a sublayer on their way to a tape. ``given``: what it reads; ``result``
    goes to ``out``, or is added to it."""

    step: Step
    given: Mapping[Value, Activations]
    result: Value | None
    out: Tensor
    add: bool

    @property
    def tape(self) -> Tape:
        return self.step.tape

    def operand(self, rows: Rows) -> Activations:
        """Rows in the forms that they have."""
        held = self._held(rows.value)
        return held if rows.heads == 1 else _by_head(held, rows.heads)

    def floats(self, rows: Rows) -> Tensor:
        """float32 [n, width] of the rows' value, or of its heads."""
        values = self._held(rows.value).values
        assert values is not None
        return values if rows.heads == 1 else _cut(values, rows.heads)

    def target(self, rows: Rows, *, add: bool = False) -> tuple[Tensor, bool]:
        """Where a launch writes rows, and whether it adds to what is there, as ``add`` says or
        because it is the residual stream."""
        if rows.value is self.result:
            return self.out, self.add or add
        return self.floats(rows), add

    def _held(self, value: Value) -> Activations:
        held = self.given.get(value, value.held)
        assert held is not None, "rows that no launch has written"
        return held


def _by_head(held: Activations, n: int) -> Activations:
    values, codes, scales = (
        None if t is None else _cut(t, n) for t in (held.values, held.codes, held.scales)
    )
    return Activations(held.n_cols // n, values, codes, scales, held.spans)


def _cut(rows: Tensor, n: int) -> Tensor:
    """Each row as ``n`` rows."""
    shape = (rows.shape[0] * n, rows.shape[1] // n, *rows.shape[2:])
    return Tensor(rows.buffer, shape, rows.dtype)


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
        integers = replace(e.operand(rows), values=None)
        norm(e.tape, e.floats(rows), UNCHANGED, integers, times=value.times)

    launch = Launch(run, (rows,), (rows,), early=after.early)
    value.reads_floats = True
    value.writers.append(launch)
    value.touched.insert(value.touched.index(after) + 1, launch)
    return launch


def _plan_memory(launches: Sequence[Launch], workspace: Workspace, result: Value) -> None:
    """Give every value memory from its first to its last launch."""
    blocks, lasting = dict[Value, list[Tensor]](), list[Tensor]()
    for launch in launches:
        for value in dict.fromkeys(rows.value for rows in launch.writes):
            if value.held is None and value is not result:
                over = _written_over(value, launch)
                if over is not None and over in blocks:
                    value.held, blocks[value] = over.held, blocks.pop(over)
                    continue
                value.held, taken = workspace.take(
                    value.width, value.readers, times=value.times, normed=launch.normed,
                    floats=value.reads_floats or not value.readers,
                    lasting=value.outlives_the_mixers,
                )  # fmt: skip
                if value.outlives_the_mixers:
                    lasting += taken
                else:
                    blocks[value] = taken
        for value in launch.touches:
            if value.touched[-1] is launch:
                workspace.give(blocks.pop(value, []))
    workspace.give(lasting, lasting=True)


def _written_over(value: Value, launch: Launch) -> Value | None:
    """The value whose memory a launch may write its result to."""
    over = None if launch.over is None else launch.over.value
    if over is None or over.touched[-1] is not launch or False in _forms(value):
        return None
    if over.held is None or over.held.quantized:
        return None
    return over if (over.width, over.times) == (value.width, value.times) else None
