"""A step's launches on the devices of a model, for replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext

from msgspec import Struct

from gguf_serve.engine.model.place import Place
from gguf_serve.engine.recording.planning import Plan
from gguf_serve.engine.recording.rows import Emission, Launch, Value
from gguf_serve.engine.recording.step import Mode, Step
from gguf_serve.kernels.opencl.affinity import apart_from_workers
from gguf_serve.kernels.opencl.tape import OUTPUTS, TOKENS, Counts, Tape
from gguf_serve.kernels.opencl.transfer import Incoming, Outgoing, Transfer
from gguf_serve.kernels.quantization.activations import Activations


class Segment(Struct, frozen=True):
    """Launches on the device ``at``, or a transfer to it; from it, if another process has what
    it goes to."""

    at: int
    run: Tape | Transfer | Outgoing | Incoming


class Recording:
    """What a step of one mode does in this process: one tape if there is one device."""

    def __init__(
        self, places: Sequence[Place], mode: Mode, plan: Plan, held: Mapping[Value, Activations]
    ) -> None:
        """``held``: what memory the plan's values have."""
        self.mode = mode
        self._places, self._plan, self._held = places, plan, held
        self._segments: list[Segment] = []
        for launch in plan.launches:
            if launch.source is not None:
                self._transfer(launch, launch.source)
            elif places[launch.at].wire is None:
                self._add(launch)
        for _, tape in self.tapes:
            tape.settle()
        waits = [isinstance(each.run, Incoming) for each in self._segments]
        self._n_first = waits.index(True) if True in waits else len(waits)

    def run(self, counts: Sequence[Counts]) -> None:
        """Enqueue all for a step; ``counts`` has those of each device (Batch.fill)."""
        self.begin(counts)
        self.end(counts)

    def begin(self, counts: Sequence[Counts]) -> None:
        """Enqueue what comes before the first rows from another process."""
        self._carry_out(self._segments[: self._n_first], counts)

    def end(self, counts: Sequence[Counts], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Enqueue the rest; ``meanwhile`` is called before this waits, if it does."""
        if rest := self._segments[self._n_first :]:
            meanwhile()
            self._carry_out(rest, counts)

    def _carry_out(self, segments: Sequence[Segment], counts: Sequence[Counts]) -> None:
        is_alone = self._n_first == len(self._segments)
        with nullcontext() if is_alone else apart_from_workers():
            for segment in segments:
                segment.run.run(counts[segment.at])

    @property
    def tapes(self) -> Iterator[tuple[int, Tape]]:
        """The runs of launches, each with the index of its device."""
        return ((each.at, each.run) for each in self._segments if isinstance(each.run, Tape))

    def _add(self, launch: Launch) -> None:
        place, tape = self._places[launch.at], self._tape(launch.at)
        tape.tokens = OUTPUTS if launch.of_rows else TOKENS
        context = place.context_of_rows if launch.of_rows else place.context
        step = Step(tape, self.mode)
        launch.run(Emission(step, context, launch, self._held, self._plan.shared))

    def _tape(self, at: int) -> Tape:
        """That of a device: the last one, or another that begins."""
        last = self._segments[-1] if self._segments else None
        if last is not None and last.at == at and isinstance(last.run, Tape):
            return last.run
        place = self._places[at]
        tape = Tape(place.device, place.programs)
        if at not in (there for there, _ in self.tapes):
            place.record_positions(tape)
        self._segments.append(Segment(at, tape))
        return tape

    def _transfer(self, launch: Launch, rows: Value) -> None:
        (target,) = launch.outputs
        x, y = self._held[rows].values, self._held[target].values
        assert x is not None
        assert y is not None
        count = OUTPUTS if launch.of_rows else TOKENS
        source, there = self._places[launch.source_at], self._places[launch.at]
        if source.wire is None and there.wire is None:
            carried = Transfer(source.device, x, there.device, y, count)
            self._segments.append(Segment(launch.at, carried))
        elif there.wire is not None and source.wire is None:
            sent = Outgoing(source.device, x, there.wire.send, count)
            self._segments.append(Segment(launch.source_at, sent))
        elif source.wire is not None and there.wire is None:
            received = Incoming(there.device, y, source.wire.receive, count)
            self._segments.append(Segment(launch.at, received))


def is_parted(plan: Plan, is_here: Sequence[bool]) -> bool:
    """Whether what this process has to do of a step after it first waits for another one needs
    nothing of what it has done before, so that other steps may come between. ``is_here``: which
    devices are this process's."""
    launches = plan.launches
    awaited = (
        each.source is not None and is_here[each.at] and not is_here[each.source_at]
        for each in launches
    )  # fmt: skip
    first = next((i for i, waits in enumerate(awaited) if waits), len(launches))
    before = (each for each in launches[:first] if is_here[each.at])
    after = [
        each for each in launches[first:]
        if is_here[each.source_at if each.source is not None else each.at]
    ]  # fmt: skip
    written = {plan.root(value) for each in before for value in each.outputs}
    read = {plan.root(value) for each in after for value in each.inputs}
    return bool(after) and written.isdisjoint(read) and not any(each.mixes for each in after)
