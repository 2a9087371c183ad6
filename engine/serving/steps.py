"""Steps: what is planned, computed and handed out, one after the other, or several at once where
the processes of a pipeline have a part of the model each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from gguf_serve.engine.completion.finite import Soundness
from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.forward.runner import Begun, Runner
from gguf_serve.engine.forward.waiting_rows import WaitingRows
from gguf_serve.engine.scheduling.pace import Pace
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Plan, Sequence
from gguf_serve.engine.serving.delivery import Delivery
from gguf_serve.engine.serving.slots import Slots
from gguf_serve.engine.serving.streams import Streams
from gguf_serve.engine.speculation.speculation import Speculation
from gguf_serve.engine.stats import Counters


class BegunStep(Struct, frozen=True):
    """A step that the device, or the stages of a pipeline, have begun at a time."""

    plan: Plan
    rows: list[OutputRow]
    forward: Begun
    began: float


class Steps:
    """Plans steps, begins and completes them. Lives in the engine's thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        streams: Streams,
        delivery: Delivery,
        slots: Slots,
        speculation: Speculation,
        soundness: Soundness,
        waiting: WaitingRows,
        counters: Counters,
        keep: Callable[[Sequence], None],
        flush: Callable[[], None],
    ) -> None:
        """``keep``: called with each sequence whose prompt has been computed; ``flush``: while the
        device computes."""
        self.pace = Pace(scheduler.max_tokens)
        self.begun: deque[BegunStep] = deque()
        self._ended = 0.0  # the last step
        self._scheduler, self._runner, self._streams = scheduler, runner, streams
        self._delivery, self._slots, self._speculation = delivery, slots, speculation
        self._soundness, self._waiting, self._counters = soundness, waiting, counters
        self._keep, self._flush = keep, flush

    def turn(self) -> bool:
        """Begin a step, and complete the first one where no more can be under way; False: there is
        none."""
        self._scheduler.prompt_chunk = self.pace.n_beside
        plan = self._plan()
        if plan is not None:
            self._guess(plan)
            self.begin(plan)
        if self.begun and (plan is None or len(self.begun) == self._runner.n_at_once):
            self._complete(self.begun[0])
            self.begun.popleft()
            return True
        return plan is not None

    def _guess(self, plan: Plan) -> None:
        self._speculation.draft(
            plan,
            lambda seq: self._streams[seq.id].proposals,
            lambda n_tokens: self._runner.is_at_hand(plan.chunks, n_tokens),
        )

    def _plan(self) -> Plan | None:
        """The next step. With other steps under way, of other sequences than theirs, a share of
        those that decode; none if it might take pages from a sequence that is in one of them."""
        running, n_at_once = self._scheduler.running, self._runner.n_at_once
        if self.begun and self._scheduler.cache.n_available < len(running):
            return None
        share = None if n_at_once == 1 else -(-len(running) // n_at_once)
        return self._scheduler.plan(self.pace.n_tokens, share)

    def begin(self, plan: Plan) -> None:
        """Have the device begin a step."""
        for seq in plan.started:
            self._slots.begin(self._streams[seq.id])
            self._counters.note_wait(self._streams[seq.id].start())
        rows = [row for chunk in plan.chunks for row in self._delivery.rows(chunk)]
        began = time.perf_counter()
        if plan.saves or plan.restores:
            self._runner.copy_states(plan.saves, plan.restores)
        self._speculation.begin(plan)
        for chunk in plan.chunks:
            if chunk.seq.n_ahead:
                self._runner.of_all_states("keep", chunk.seq.slot)
        forward = self._runner.begin(plan.chunks, plan.copies, rows)
        if forward is None:  # copies for one that waits for an image
            return
        if self._runner.n_at_once > 1:  # its sequences sit out until it is completed
            self._scheduler.advance(plan)
        self.begun.append(BegunStep(plan, rows, forward, began))

    def _complete(self, step: BegunStep) -> None:
        plan = step.plan
        patience = self.pace.patience(is_alone=len(self._streams) == 1)
        logits = self._runner.complete(step.forward, self._flush, patience)
        ended = time.perf_counter()
        seconds, self._ended = ended - max(step.began, self._ended), ended
        self.pace.note(plan.n_tokens, seconds, any(row.mask for row in step.rows))
        self._speculation.note(plan, seconds, self._runner.states_of)
        found = [
            (row, values)
            for row, values in zip(step.rows, logits, strict=True)
            if row.chunk.seq.state == "running"  # it has not ended meanwhile
        ]
        self._soundness.inspect(found)
        if self._runner.n_at_once == 1:
            self._scheduler.advance(plan)
        self._counters.note_forward(plan, len(self._scheduler.running))
        for chunk in plan.chunks:
            if (stream := self._streams.get(chunk.seq.id)) is not None:
                stream.progress(chunk.start + chunk.count)
                if chunk.start < chunk.seq.n_prompt <= chunk.start + chunk.count:
                    self._keep(chunk.seq)
        for row, values in found:
            if values.waits and not row.n_drafted:
                self._waiting.add(row, values)
            else:
                self._delivery.deliver(row, values)
        for chunk in plan.chunks:
            if chunk.seq.n_ahead and chunk.seq.state == "running":
                self._runner.of_all_states("put_back", chunk.seq.slot)
                self._scheduler.rewind(chunk.seq, chunk.start)
            if (stream := self._streams.get(chunk.seq.id)) and stream.proposals is not None:
                stream.proposals.prepare()
        self._delivery.speak(plan.chunks)
        self._delivery.embed(plan.chunks)
        self._delivery.end_prompts(plan.chunks)
