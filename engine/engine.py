"""The engine: one thread that owns the device and serves every request.

The loop is: take the inbox, plan, forward, sample, commit. In a pipeline of several processes a
step for other sequences begins before the one before it is sampled. ``submit`` and ``cancel`` may
be called from any thread; events come from the engine's. A fault in the loop ends every open
stream with ``Failed`` and turns ``healthy`` off; nothing is left hanging. A fault in the
sampling of one request ends that request only.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from gguf_serve.engine.chat.prompt import Template
from gguf_serve.engine.completion.finite import Soundness
from gguf_serve.engine.completion.stream import Outbox, Stream
from gguf_serve.engine.errors import RequestError, StageLostError
from gguf_serve.engine.forward.following import follow
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.forward.slot_cache import SlotCache
from gguf_serve.engine.forward.stages import Done, Leading
from gguf_serve.engine.forward.waiting_rows import WaitingRows
from gguf_serve.engine.grammar.compile import Grammars
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.loading.loader import (
    compile_model,
    free_memory,
    list_devices,
    load_model,
    load_stage,
)
from gguf_serve.engine.loading.media_loader import Media
from gguf_serve.engine.model.wire import Wire
from gguf_serve.engine.options import AdapterState, EngineOptions, ModelInfo
from gguf_serve.engine.recording.low_rank import Reserved
from gguf_serve.engine.request import Event, Request
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.engine.serving.adapter_room import Adapters
from gguf_serve.engine.serving.admission import Admission
from gguf_serve.engine.serving.delivery import Delivery
from gguf_serve.engine.serving.disk import DiskCache, DiskOptions, disk_options, host_options
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
from gguf_serve.engine.speculation.model_drafter import ModelDrafter
from gguf_serve.engine.speculation.speculation import Speculation
from gguf_serve.engine.speech.speaker import Speech
from gguf_serve.engine.stats import (
    Counters,
    EngineStats,
    SlotFile,
    SlotState,
    engine_stats,
)
from gguf_serve.engine.text.tokenizer import Tokenizer
from gguf_serve.kernels.opencl.missing import no_driver

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "Engine", "Ticket", "compile_model", "free_memory", "list_devices", "load_engine", "no_driver",
    "serve_stage",
]  # fmt: skip

log = logging.getLogger(__name__)
FIRST_PAUSE = 0.5  # seconds without a request before its runner uses the time


class Ticket(Struct, frozen=True, eq=False):
    """A submitted request, for ``cancel``."""

    stream: Stream


class Engine:
    """Serves requests for one loaded model."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        chat_template: Template,
        info: ModelInfo,
        media: Media | None = None,
        disk: DiskOptions | None = None,
        drafter: ModelDrafter | None = None,
        reserved: Reserved | None = None,
        replacements: Callable[[], Sequence[Leading]] | None = None,
        speech: Speech | None = None,
    ) -> None:
        """``speech``: how texts are spoken, if the model speaks. ``replacements``: see Recovery;
        None: no other process has a part of the model."""
        self.tokenizer, self.chat_template, self.info = tokenizer, chat_template, info
        self.media = None if media is None else media.reader
        self.speech = speech
        self.n_ctx, self.n_slots = scheduler.n_ctx, len(scheduler.slots)
        self._runner, self._scheduler = runner, scheduler
        self._counters = Counters()
        self._mailbox = Mailbox()
        self._outbox: Outbox = deque()
        beside = None if drafter is None else drafter.pages
        slot_cache = SlotCache(scheduler, runner, info, beside)
        self._slots = Slots(slot_cache, scheduler, self._mailbox)
        self._disk = None if disk is None else DiskCache(
            disk, scheduler, runner, info, slot_cache.made_with, lambda: self._steps.pace.speed,
            self._mailbox.notify, beside,
        )  # fmt: skip
        self._grammars = Grammars(tokenizer, info.n_vocab)
        self._speculation = Speculation(scheduler, drafter)
        self._waiting = WaitingRows(self._mailbox.wake)
        self._admission = Admission(
            scheduler, tokenizer, info, self._grammars, self._outbox, self._speculation.by_model,
            None if media is None else media.speaker,
        )  # fmt: skip
        self._adapters = None if reserved is None else Adapters(
            reserved, self._admission, self._between_steps
        )  # fmt: skip
        encode = self._admission.encode_plain
        self._soundness = Soundness(scheduler, info, encode, self.submit, self._forget)
        self._streams = Streams(scheduler, runner, self._counters, self._soundness, self._keep)
        self._delivery = Delivery(self._streams, scheduler, runner, self._counters, info)
        self._steps = Steps(
            scheduler, runner, self._streams, self._delivery, self._slots, self._speculation,
            self._soundness, self._waiting, self._counters, self._keep, self._flush,
        )  # fmt: skip
        self._media_turns = None if media is None else MediaTurns(
            media.encoder, scheduler, self._streams
        )  # fmt: skip
        self._recovery = None if replacements is None else Recovery(
            replacements, runner, scheduler, self._mailbox
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        return self._thread.is_alive() and not (self._mailbox.stopping or self.fault)

    @property
    def fault(self) -> str:
        """What has ended the engine, keeps it from computing, or is wrong with whatever the model
        computes; "": nothing."""
        missing = "" if self._recovery is None else self._recovery.reason
        return self._mailbox.fault or missing or self._soundness.fault

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Ticket:
        """Take a request; its events go to ``on_event``.

        Raises ContextOverflowError or RequestError for one that cannot be served, and
        EngineStoppedError if the engine has ended.
        """
        stream = self._admission.admit(request, on_event)
        self._mailbox.post(Submitted(stream))
        return Ticket(stream)

    def adapters(self) -> tuple[AdapterState, ...]:
        """The LoRA adapters that are loaded, with the scales of requests which name none."""
        return self._admission.adapters

    def set_adapters(self, scales: Iterable[tuple[int, float]]) -> None:
        """New scales by id, from the next request on; others become 0. RequestError for an id
        that no adapter has."""
        self._admission.set_adapters(scales)
        self._soundness.renew()

    def load_adapter(self, path: Path, name: str, replaces: int | None = None) -> AdapterState:
        """Load a LoRA adapter, for requests that name it; waits until it can be used.
        ``replaces``: the id of one that goes when this one is there; what has it keeps it.

        RequestError for a file that does not fit, or without room for it.
        """
        loaded = self._room_for_adapters().load(path, name, replaces)
        self._soundness.renew()
        return loaded

    def unload_adapter(self, id: int) -> None:
        """Have no further request use an adapter. RequestError for one that is not there, or that
        was loaded at the start."""
        self._room_for_adapters().unload(id)
        self._soundness.renew()

    def _room_for_adapters(self) -> Adapters:
        if self._adapters is None:
            raise RequestError("there is no room for LoRA adapters (--lora-runtime)")
        return self._adapters

    def _between_steps(self, action: Callable[[], None]) -> Future[None]:
        task = Task(action)
        self._mailbox.post(task)
        return task.future

    def compile(self, constraint: Constraint) -> None:
        """Compile a constraint ahead, which ``submit`` would wait for; the result is kept.

        Raises RequestError for one that is malformed, too large or cannot be enforced.
        """
        self._grammars.compiled(constraint)

    def cancel(self, ticket: Ticket) -> None:
        """End a request early; a ``Finished("cancelled")`` follows unless it has ended."""
        self._mailbox.post(Cancelled(ticket.stream), refuse=False)

    def end_reasoning(self, ticket: Ticket) -> None:
        """Close the reasoning of a request that has a budget, if it is open then."""
        self._mailbox.post(ReasoningEnded(ticket.stream), refuse=False)

    def stats(self) -> EngineStats:
        """What has been counted so far; from any thread, at no cost to the engine's."""
        disk = None if self._disk is None else self._disk.stats()
        return engine_stats(self._counters, self._scheduler, self._mailbox.n_submitted, disk)

    def slots(self) -> list[SlotState]:
        """What each slot does or did last; from any thread."""
        return self._slots.states()

    def save_slot(self, id_slot: int, path: Path) -> Future[SlotFile]:
        """Write what is cached of a slot's last tokens to a file.

        This and the two below wait for the slot to be idle. RequestError, raised or in the
        future, names what is wrong with the slot or the file; EngineStoppedError: too late.
        """
        return self._slots.save(id_slot, path)

    def restore_slot(self, id_slot: int, path: Path) -> Future[SlotFile]:
        """Bring a file's tokens into the cache, where every slot finds them."""
        return self._slots.restore(id_slot, path)

    def erase_slot(self, id_slot: int) -> Future[int]:
        """Free what is cached of a slot's last tokens; the result is their number."""
        return self._slots.erase(id_slot)

    def wait_until_kept(self, seconds: float) -> bool:
        """Have what is computed so far written to the folder of --cache-disk; False: it cannot be,
        or takes longer, or there is none."""
        return self._disk is not None and self._disk.wait(seconds)

    def close(self) -> None:
        """End every stream and the thread; waits for the step that is running."""
        self._mailbox.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()
            if self._disk is not None:
                self._disk.close()

    def release(self) -> None:
        """Close, and let the memory of the device go. ``info``, ``tokenizer``, ``chat_template``
        and what ``slots`` and ``stats`` have counted stay."""
        self.close()
        self._slots.release()
        if self._disk is not None:
            self._disk.release()
        self._speculation.release()
        self._adapters = self._recovery = None
        del self._runner, self._streams, self._delivery, self._steps, self._media_turns

    # The engine's thread

    def _run(self) -> None:
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
        self._runner.leave()

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
            pauses = self._runner.use_pause(), self._speculation.use_pause()
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

    def _forget(self, seq: RunningSequence) -> None:
        """Have nobody begin with what is cached of a sequence: it is damaged."""
        self._scheduler.forget(seq)
        if self._disk is not None:
            self._disk.forget(seq)


def load_engine(
    path: Path,
    options: EngineOptions,
    progress: Callable[[float], None] = lambda share: None,
    connect: Callable[[], Iterable[Wire]] | None = None,
) -> Engine:
    """Load a model and start its engine; ModelError or EngineError says why it cannot be.
    ``connect`` starts processes that are to have their share of the layers, see ``serve_stage``,
    and gives wires to them; called again when one is lost."""
    between = [] if connect is None else list(connect())
    try:
        model = load_model(path, options, progress, between)
    except BaseException:
        for wire in between:
            wire.close()
        raise
    disk = None
    if not between:
        found = host_options(options, model.info, model.scheduler.checkpoints)
        disk = disk_options(options) or found
    replacements = None
    if model.stages is not None and connect is not None:
        replacements = partial(model.stages.replaced, connect)
    return Engine(
        model.runner, model.scheduler, model.tokenizer, model.chat_template, model.info,
        model.media, disk, model.drafter, model.reserved, replacements, model.speech,
    )  # fmt: skip


def serve_stage(wire: Wire, wires: Iterable[Wire | None]) -> None:
    """Have a share of the layers of the model that the first stage loads, at the other end of
    ``wire``, until it is gone. ``wires``: to all stages, None for this one. Raises EngineError."""
    try:
        runner = load_stage(wire, list(wires))
    except Exception as error:
        wire.send(Done(str(error)))
        raise
    follow(runner, wire)
