"""The loop of the engine's thread, which owns the device: take the mail, plan, forward, sample,
commit.

In a pipeline of several processes a step for other sequences begins before the one before it is
sampled. A fault in the loop ends every open stream with ``Failed`` and closes the mailbox; nothing
is left hanging. A fault in the sampling of one request ends that request only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from gguf_serve.engine.completion.finite import Soundness
from gguf_serve.engine.completion.stream import Outbox
from gguf_serve.engine.errors import StageLostError
from gguf_serve.engine.forward.stages import Leading
from gguf_serve.engine.forward.waiting_rows import WaitingRows
from gguf_serve.engine.loading.loader import Model
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.engine.serving.delivery import Delivery
from gguf_serve.engine.serving.disk import DiskCache
from gguf_serve.engine.serving.mailbox import (
    Cancelled,
    Mailbox,
    ReasoningEnded,
    SlotTask,
    Submitted,
    Task,
)
from gguf_serve.engine.serving.media_turns import MediaTurns
from gguf_serve.engine.serving.recovery import Recovery
from gguf_serve.engine.serving.slots import Slots
from gguf_serve.engine.serving.steps import Steps
from gguf_serve.engine.serving.streams import Streams
from gguf_serve.engine.speculation.speculation import Speculation
from gguf_serve.engine.stats import Counters

log = logging.getLogger(__name__)
FIRST_PAUSE = 0.5  # seconds without a request before its runner uses the time


class Loop:
    """Belongs to the engine's thread, which ``run`` is; ``loss`` may be read from any."""

    def __init__(
        self,
        model: Model,
        mailbox: Mailbox,
        outbox: Outbox,
        slots: Slots,
        speculation: Speculation,
        soundness: Soundness,
        counters: Counters,
        disk: DiskCache | None,
        replacements: Callable[[], Sequence[Leading]] | None,
    ) -> None:
        """``outbox``: events that streams have had, for those who submitted them."""
        runner, scheduler = model.runner, model.scheduler
        self.runner, self._scheduler = runner, scheduler
        self._mailbox, self._outbox = mailbox, outbox
        self._slots, self._speculation, self._disk = slots, speculation, disk
        self._waiting = WaitingRows(mailbox.wake)
        self._streams = Streams(scheduler, runner, counters, soundness, self._keep)
        self._delivery = Delivery(self._streams, scheduler, runner, counters, model.info)
        self._steps = Steps(
            scheduler, runner, self._streams, self._delivery, slots, speculation, soundness,
            self._waiting, counters, self._keep, self._flush,
        )  # fmt: skip
        self._media_turns = None if model.media is None else MediaTurns(
            model.media.encoder, scheduler, self._streams
        )  # fmt: skip
        self._recovery = None if replacements is None else Recovery(
            replacements, runner, scheduler, mailbox
        )  # fmt: skip

    @property
    def loss(self) -> str:
        """What the stages of the model lack, so that nothing is computed; "": nothing."""
        return "" if self._recovery is None else self._recovery.reason

    @property
    def speed(self) -> float:
        """Tokens of prompts that are computed in a second."""
        return self._steps.pace.speed

    def run(self) -> None:
        """Serve until the mailbox is told to stop, or something fails."""
        try:
            while self._take_inbox():
                if self._recovery is None:
                    self._turn()
                else:
                    self._turn_or_recover(self._recovery)
                self._slots.run_tasks()
        except Exception as error:
            log.exception("the engine has failed")
            self._mailbox.stop(f"the engine has failed: {error}")
        self._end()

    def forget(self, seq: RunningSequence) -> None:
        """Have nobody begin with what is cached of a sequence: it is damaged."""
        self._scheduler.forget(seq)
        if self._disk is not None:
            self._disk.forget(seq)

    def release(self) -> None:
        """Once ``run`` has ended: let the memory of the device go."""
        self._recovery = None
        del self.runner, self._streams, self._delivery, self._steps, self._media_turns

    def _turn(self) -> None:
        """Begin a step, and complete one."""
        if self._disk is not None:
            self._disk.work(bool(self._scheduler.running), bool(self._streams))
        if self._media_turns is not None:
            self._media_turns.encode_one()
        for row, logits in self._waiting.take():
            self._delivery.deliver(row, logits)
        if not self._steps.turn():
            self._flush()
            self._waiting.wait(self._has_news, also=self._all_are_loading)

    def _turn_or_recover(self, recovery: Recovery) -> None:
        try:
            if recovery.work(self._steps.begun, self._streams):
                self._turn()
                return
        except StageLostError as error:
            recovery.lose(str(error))
            return
        self._flush()
        recovery.wait(self._has_news)

    def _end(self) -> None:
        """Leave nobody waiting: neither who is served, nor who has come meanwhile."""
        left = list(self._streams)
        for message in self._mailbox.take():
            if isinstance(message, Submitted):
                left.append(message.stream)
            elif isinstance(message, SlotTask):
                self._slots.add(message)
            elif isinstance(message, Task):
                message.fail(self._mailbox.end)
        self._slots.end(self._mailbox.end)
        for stream in left:
            if self._mailbox.fault:
                stream.fail(self._mailbox.fault)
            else:
                stream.finish("cancelled", truncated=False)
        self._flush()
        self.runner.leave()

    def _flush(self) -> None:
        """Hand out the events so far. In a step that is done while the device computes, so that
        neither it nor the engine's thread waits for those who receive them."""
        while self._outbox:
            stream, event = self._outbox.popleft()
            stream.hear(event)

    def _take_inbox(self) -> bool:
        """Take in what was posted, waiting if there is nothing else to do; False: stop."""
        if not self._streams:
            self._flush()
        self._await_work()
        self._take_messages()
        return not self._mailbox.stopping

    def _take_messages(self) -> None:
        for message in self._mailbox.take():
            match message:
                case Submitted(stream):
                    self._streams.add(stream)
                    if stream.seq.n_resumed:
                        self._delivery.end_if_due(stream)
                    if self._disk is not None:
                        self._disk.admit(stream.seq)
                case Cancelled(stream) if stream in self._streams:
                    self._streams.end(stream, "cancelled")
                case ReasoningEnded(stream) if stream in self._streams:
                    stream.end_reasoning()
                case SlotTask():
                    self._slots.add(message)
                case Task():
                    message.run()

    def _await_work(self) -> None:
        """Wait for something to do; the runner may use the time, a little at once."""
        pause: float | None = FIRST_PAUSE
        while True:
            with self._mailbox.wake:
                if self._mailbox.wake.wait_for(self._has_work, pause):
                    return
            pauses = self.runner.use_pause(), self._speculation.use_pause()
            pause = min((each for each in pauses if each is not None), default=None)

    def _has_work(self) -> bool:
        has_loss = self._recovery is not None and self._recovery.has_work
        return bool(self._streams or self._slots.has_tasks) or has_loss or self._has_news()

    def _has_news(self) -> bool:
        """Whether another thread has something for this one."""
        return bool(self._mailbox) or (
            self._disk is not None and self._disk.has_work(bool(self._streams))
        )

    @property
    def _all_are_loading(self) -> bool:
        return self._disk is not None and self._disk.n_waiting == len(self._streams) > 0

    def _keep(self, seq: RunningSequence) -> None:
        """Have what is computed of a sequence written to the disk."""
        if self._disk is not None:
            self._disk.keep(seq)
