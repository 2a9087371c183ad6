"""A step's launches on the devices of a model, for replay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from gguf_serve.engine.model.place import Place
from gguf_serve.engine.recording.planning import Plan
from gguf_serve.engine.recording.rows import Emission, Launch, Value
from gguf_serve.engine.recording.step import Mode, Step
from gguf_serve.kernels.opencl.tape import OUTPUTS, TOKENS, Counts, Tape
from gguf_serve.kernels.opencl.transfer import Transfer
from gguf_serve.kernels.quantization.activations import Activations


class Stage(Struct, frozen=True):
    """Launches on the device ``at``, or a transfer to it."""

    at: int
    run: Tape | Transfer


class Recording:
    """What a step of one mode does: one tape if there is one device."""

    def __init__(
        self, places: Sequence[Place], mode: Mode, plan: Plan, held: Mapping[Value, Activations]
    ) -> None:
        """``held``: what memory the plan's values have."""
        self.mode = mode
        self._places, self._plan, self._held = places, plan, held
        self._stages: list[Stage] = []
        for launch in plan.launches:
            if launch.source is not None:
                self._stages.append(Stage(launch.at, self._transfer(launch, launch.source)))
            else:
                self._add(launch)
        for _, tape in self.tapes:
            tape.settle()

    def run(self, counts: Sequence[Counts]) -> None:
        """Enqueue all for a step; ``counts`` has those of each device (Batch.fill)."""
        for stage in self._stages:
            stage.run.run(counts[stage.at])

    @property
    def tapes(self) -> Iterator[tuple[int, Tape]]:
        """The runs of launches, each with the index of its device."""
        return ((stage.at, stage.run) for stage in self._stages if isinstance(stage.run, Tape))

    def _add(self, launch: Launch) -> None:
        place, tape = self._places[launch.at], self._tape(launch.at)
        tape.tokens = OUTPUTS if launch.of_rows else TOKENS
        context = place.context_of_rows if launch.of_rows else place.context
        step = Step(tape, self.mode)
        launch.run(Emission(step, context, launch, self._held, self._plan.shared))

    def _tape(self, at: int) -> Tape:
        """That of a device: the last one, or another that begins."""
        last = self._stages[-1] if self._stages else None
        if last is not None and last.at == at and isinstance(last.run, Tape):
            return last.run
        place = self._places[at]
        tape = Tape(place.device, place.programs)
        if at not in (there for there, _ in self.tapes):
            place.record_positions(tape)
        self._stages.append(Stage(at, tape))
        return tape

    def _transfer(self, launch: Launch, source: Value) -> Transfer:
        (target,) = launch.outputs
        x, y = self._held[source].values, self._held[target].values
        assert x is not None
        assert y is not None
        count = OUTPUTS if launch.of_rows else TOKENS
        devices = self._places[launch.source_at].device, self._places[launch.at].device
        return Transfer(devices[0], x, devices[1], y, count)
