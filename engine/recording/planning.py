"""What is planned when a whole model has been recorded, for steps of one kind: which launches are
needed, which tokens they have, what is carried between devices, and what becomes one launch.

Each of these is a pass from launches to launches; memory.py gives the values of the last one
memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.recording.rows import Emission, Launch, Rows, Value, root_of
from gguf_serve.kernels.rows.norm import COPY, NormWeights, norm


class Plan(Struct, frozen=True):
    """Launches in their order; ``shared``: values that have the floats of another's memory."""

    launches: list[Launch]
    shared: dict[Value, Value]

    def root(self, value: Value) -> Value:
        """The value that has the memory of this one's floats."""
        return root_of(value, self.shared)


def plan(launches: Sequence[Launch], results: Collection[Value], *, wanted_only: bool) -> Plan:
    """The launches that yield ``results``, with ``wanted_only`` from the last mixer on for the
    tokens alone whose logits are wanted."""
    listed = _needed(launches, results)
    if wanted_only:
        listed = _gather_early(listed)
    listed = _transferred(listed)
    fusing = _Fusing(listed)
    fusing.fuse()
    return Plan(_with_copies(fusing.launches), fusing.shared)


def touched(launches: Iterable[Launch]) -> dict[Value, list[int]]:
    """The launches that read or write each value, by number."""
    found = defaultdict[Value, list[int]](list)
    for i, launch in enumerate(launches):
        for value in launch.touches:
            found[value].append(i)
    return found


def forms_read(launches: Iterable[Launch]) -> dict[Value, set[bool]]:
    """The forms in which matrices read each value: True for floats, False for integers."""
    found = defaultdict[Value, set[bool]](set)
    for launch in launches:
        for rows, linear in launch.operands:
            found[rows.value] |= linear.reads_floats
    return found


def _needed(launches: Sequence[Launch], results: Collection[Value]) -> list[Launch]:
    """Without those whose rows nobody reads; what only looks at rows does so where others read
    them."""
    wanted, found = set(results), list[Launch]()
    for launch in reversed(launches):
        keeps = launch.mixes and not launch.writes  # writes to a cache or a state
        if keeps or not wanted.isdisjoint(launch.outputs or launch.inputs):
            found.append(launch)
            wanted.update(launch.inputs)
    return found[::-1]


def _gather_early(launches: list[Launch]) -> list[Launch]:
    """The rows that are wanted are gathered after the last mixer, as soon as all that later
    launches read is one value; from there on they are all the tokens that there are."""
    end = next((i for i, launch in enumerate(launches) if launch.gathers), None)
    begin = max((i for i, launch in enumerate(launches) if launch.mixes), default=-1) + 1
    if end is None or begin == 0:
        return launches
    uses = touched(launches)
    for at in range(begin, end):
        live = [value for value, use in uses.items() if use[0] < at <= use[-1]]
        if len(live) == 1 and live[0].times == 1:
            return _gathered_at(launches, at, end, live[0], uses[live[0]])
    return launches


def _gathered_at(
    launches: list[Launch], at: int, end: int, value: Value, uses: Sequence[int]
) -> list[Launch]:
    some = replace(value)
    before = max(i for i in uses if i < at)
    gather = gathering(value.rows, some.rows, launches[before].at)
    (given,), (given_to,) = launches[end].inputs, launches[end].outputs
    names = {value: some, given_to: some if given is value else given}
    after = (replace(x.renamed(names), of_rows=True) for x in launches[at:] if not x.gathers)
    return [*launches[:at], gather, *after]


def gathering(x: Rows, out: Rows, at: int) -> Launch:
    """The launch that gathers the rows of the tokens whose logits are wanted."""

    def run(e: Emission) -> None:
        count, rows = e.gathered
        norm(e.tape, e.floats(x), COPY, e.operand(out), post=e.post, rows=rows, count=count)

    return Launch(
        run, at, (x,), (), (out,), writes_forms=True, norm=COPY, gathers=True
    )  # fmt: skip


def _transferred(launches: list[Launch]) -> list[Launch]:
    """With a transfer wherever a launch reads what its device does not have."""
    if len({launch.at for launch in launches}) == 1:
        return launches
    present, found = dict[Value, dict[int, Value]](), list[Launch]()
    for launch in launches:
        names, at = dict[Value, Value](), launch.at
        for value in launch.inputs:
            copies = present.setdefault(value, {at: value})
            if at not in copies:
                source = min(copies)
                copies[at] = replace(value)
                found.append(_transfer(copies[source], source, copies[at], launch))
            if copies[at] is not value:
                names[value] = copies[at]
        for value in launch.outputs:
            present[value] = {at: names.get(value, value)}
        found.append(launch.renamed(names) if names else launch)
    return found


def _transfer(x: Value, source_at: int, out: Value, launch: Launch) -> Launch:
    rows = (x.rows,), (), (out.rows,)
    return Launch(
        _nothing, launch.at, *rows, of_rows=launch.of_rows, source=x, source_at=source_at
    )  # fmt: skip


def _nothing(e: Emission) -> None:
    raise AssertionError("a transfer is no launch")


class _Fusing:
    """Sums, norms and gathers that other launches carry out."""

    def __init__(self, launches: Sequence[Launch]) -> None:
        self._launches: list[Launch | None] = list(launches)
        self._uses = touched(launches)
        self._forms = forms_read(launches)
        self.shared: dict[Value, Value] = {}

    @property
    def launches(self) -> list[Launch]:
        return [launch for launch in self._launches if launch is not None]

    def fuse(self) -> None:
        for i, launch in enumerate(self._launches):
            if launch is not None and launch.gathers:
                self._gather_in_norm(i, launch)
            elif launch is not None and launch.addend is not None:
                self._sum_in_writer(i, launch) or self._sum_in_norm(i, launch)

    def _drop(self, i: int) -> None:
        launch = self._launches[i]
        assert launch is not None
        for value in launch.touches:
            self._uses[value].remove(i)
        self._launches[i] = None

    def _put(self, i: int, launch: Launch) -> None:
        self._launches[i] = launch
        for value in launch.touches:
            if i not in self._uses[value]:
                self._uses[value] = sorted([*self._uses[value], i])

    def _at(self, i: int) -> Launch:
        launch = self._launches[i]
        assert launch is not None
        return launch

    def _gather_in_norm(self, i: int, gather: Launch) -> None:
        """The norm that alone reads the gathered rows gathers them."""
        x, out = gather.reads[0].value, gather.writes[0].value
        uses = self._uses[out]
        if len(uses) != 2 or self._uses[x][-1] != i:
            return
        reader = self._at(uses[1])
        if reader.norm is None or reader.reads[0].value is not out or reader.at != gather.at:
            return
        at = uses[1]
        self._drop(i)
        self._drop(at)
        reader = reader.renamed({out: x})
        self._put(at, replace(
            reader, reads=(*reader.reads, *gather.reads[1:]), over=None, post=gather.post,
            writes=(*reader.writes, *gather.writes[1:]), gathers=True, of_rows=False,
        ))  # fmt: skip

    def _sum_in_writer(self, i: int, launch: Launch) -> bool:
        """Who writes what is added adds it, if nobody else reads either of the two."""
        x, y, out = _summed(launch)
        *writers, end = self._uses[y]
        if end != i or y.memory is not None or y in self.shared or x.dtype != y.dtype:
            return False
        if any(
            not self._at(w).can_add or y not in self._at(w).outputs or y in self._at(w).inputs
            or self._at(w).at != launch.at
            for w in writers
        ):  # fmt: skip
            return False
        *before, last = self._uses[x]
        if last != i or max(before, default=-1) >= writers[0]:
            return False
        self._drop(i)
        for w in writers:
            writer = self._at(w)
            self._put(w, replace(
                writer, adds=True, reads=(*writer.reads, x.rows),
                writes=(*writer.writes, out.rows),
            ))  # fmt: skip
        self.shared[out], self.shared[y] = x, out
        return True

    def _sum_in_norm(self, i: int, launch: Launch) -> bool:
        """The next norm of a sum makes the norm of what is added and adds it, if nobody else reads
        either of the two."""
        x, y, out = _summed(launch)
        if self._uses[x][-1] != i or len(self._uses[y]) != 2 or self._uses[y][1] != i:
            return False
        made = self._at(self._uses[y][0])
        if made.norm is None or not _is_plain(made.norm) or made.at != launch.at or made.gathers:
            return False
        given = made.reads[0]
        if self._uses[given.value][-1] != self._uses[y][0] or made.post is not None:
            return False
        post = given, made.norm
        self._drop(self._uses[y][0])
        self._drop(i)
        self.shared[out] = x
        later = next(iter(self._uses[out]), None)
        reader = None if later is None else self._at(later)
        takes = reader is not None and reader.norm is not None and reader.at == launch.at
        takes = takes and False not in self._forms[out]
        if later is None or reader is None or not takes or reader.reads[0].value is not out:
            self._put(i, _normalized_sum(x, out, launch, post))
            return True
        self._drop(later)
        self._put(later, replace(
            reader, post=post, reads=(*reader.reads, given, x.rows),
            writes=(*reader.writes, out.rows),
        ))  # fmt: skip
        return True


def _summed(launch: Launch) -> tuple[Value, Value, Value]:
    assert launch.over is not None
    assert launch.addend is not None
    (out,) = launch.outputs
    return launch.over.value, launch.addend.value, out


def _is_plain(weights: NormWeights) -> bool:
    return weights.weight is not None and weights.bias is None and not weights.layer


def _normalized_sum(x: Value, out: Value, launch: Launch, post: tuple[Rows, NormWeights]) -> Launch:
    """x += norm(y), in place, and integers of that if matrices read them."""

    def run(e: Emission) -> None:
        made = e.operand(out.rows)
        made = replace(made, values=None) if made.quantized else made
        norm(e.tape, e.floats(out.rows), COPY, made, post=e.post)

    return replace(
        launch, run=run, reads=(x.rows, out.rows, post[0]), over=None, addend=None, post=post,
        writes_forms=True, names={},
    )  # fmt: skip


def _with_copies(launches: list[Launch]) -> list[Launch]:
    """Where matrices want integers of a writer that has floats only, a copy makes them."""
    forms, found = forms_read(launches), list[Launch]()
    writers = defaultdict[Value, list[int]](list)
    for i, launch in enumerate(launches):
        for value in launch.outputs:
            writers[value].append(i)
    for i, launch in enumerate(launches):
        found.append(launch)
        for value in launch.outputs:
            whole = len(writers[value]) == 1 and launch.writes_forms
            if writers[value][-1] == i and False in forms[value] and not whole:
                found.append(_copy(value, launch))
    return found


def _copy(value: Value, after: Launch) -> Launch:
    """The launch that makes integers of a value's floats."""
    rows = value.rows

    def run(e: Emission) -> None:
        integers = replace(e.operand(rows), values=None)
        norm(e.tape, e.floats(rows), COPY, integers, times=value.times)

    return Launch(
        run, after.at, (rows,), (), (rows,), of_rows=after.of_rows or after.gathers
    )  # fmt: skip
