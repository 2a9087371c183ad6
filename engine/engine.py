"""The engine: one thread that owns the device and serves every request.

The loop is: take the inbox, plan, forward, sample, commit. ``submit`` and ``cancel`` may be
called from any thread; events come from the engine's. A fault in the loop ends every open
stream with ``Failed`` and turns ``healthy`` off; nothing is left hanging. A fault in the
sampling of one request ends that request only.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.chat.prompt import Template
from gguf_serve.engine.completion.finite import Soundness
from gguf_serve.engine.completion.stream import Outbox, Stream
from gguf_serve.engine.errors import EngineStoppedError, RequestError
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.forward.slot_cache import SlotCache, SlotFile, SlotTask
from gguf_serve.engine.forward.waiting_rows import WaitingRows
from gguf_serve.engine.grammar.compile import Grammars
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.loading.loader import compile_model, free_memory, list_devices, load_model
from gguf_serve.engine.loading.media_loader import Media
from gguf_serve.engine.options import AdapterState, EngineOptions, ModelInfo
from gguf_serve.engine.request import Event, Request
from gguf_serve.engine.scheduling.pace import Pace
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Plan
from gguf_serve.engine.serving.admission import Admission
from gguf_serve.engine.serving.delivery import Delivery
from gguf_serve.engine.serving.media_turns import MediaTurns
from gguf_serve.engine.serving.streams import Streams
from gguf_serve.engine.stats import Counters, EngineStats, SlotState, engine_stats, slot_states
from gguf_serve.engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Engine", "Ticket", "compile_model", "free_memory", "list_devices", "load_engine"]

log = logging.getLogger(__name__)
Floats = npt.NDArray[np.float32]
T = TypeVar("T")
FIRST_PAUSE = 0.5  # seconds without a request before its runner uses the time


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A submitted request, for ``cancel``."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Submitted:
    """A new stream for the engine's thread."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Nobody wants the stream any more."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class ReasoningEnded:
    """The stream's reasoning is to be closed."""

    stream: Stream


Message = Submitted | Cancelled | ReasoningEnded


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
    ) -> None:
        self.tokenizer, self.chat_template, self.info = tokenizer, chat_template, info
        self.media = None if media is None else media.reader
        self.n_ctx, self.n_slots = scheduler.n_ctx, len(scheduler.slots)
        self._runner, self._scheduler = runner, scheduler
        self._pace = Pace(scheduler.max_tokens)
        self._counters = Counters()
        self._slot_cache = SlotCache(scheduler, runner, info)
        self._slot_tasks: list[SlotTask] = []
        self._latest: list[Stream | None] = [None] * self.n_slots  # by slot
        self._inbox: deque[Message] = deque()
        self._outbox: Outbox = deque()
        self._wake = threading.Condition()
        self._stopping, self._fault = False, ""
        self._grammars = Grammars(tokenizer, info.n_vocab)
        self._waiting = WaitingRows(self._wake)
        self._admission = Admission(scheduler, tokenizer, info, self._grammars, self._outbox)
        encode = self._admission.encode_plain
        self._soundness = Soundness(scheduler, info, encode, self.submit)
        self._streams = Streams(scheduler, runner, self._counters, self._soundness)
        self._delivery = Delivery(self._streams, scheduler, runner, self._counters, info)
        self._media_turns = None if media is None else MediaTurns(
            media.encoder, scheduler, self._streams
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        return self._thread.is_alive() and not self._stopping and not self._soundness.fault

    @property
    def fault(self) -> str:
        """What has ended the engine, or is wrong with whatever the model computes; "": nothing."""
        return self._fault or self._soundness.fault

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Ticket:
        """Take a request; its events go to ``on_event``.

        Raises ContextOverflowError or RequestError for one that cannot be served, and
        EngineStoppedError if the engine has ended.
        """
        stream = self._admission.admit(request, on_event)
        self._post(Submitted(stream))
        return Ticket(stream)

    def adapters(self) -> tuple[AdapterState, ...]:
        """The LoRA adapters that are loaded, with the scales of requests which name none."""
        return self._admission.adapters

    def set_adapters(self, scales: Iterable[tuple[int, float]]) -> None:
        """New scales by id, from the next request on; others become 0. RequestError for an id
        that no adapter has."""
        self._admission.set_adapters(scales)
        self._soundness.renew()

    def compile(self, constraint: Constraint) -> None:
        """Compile a constraint ahead, which ``submit`` would wait for; the result is kept.

        Raises RequestError for one that is malformed, too large or cannot be enforced.
        """
        self._grammars.compiled(constraint)

    def cancel(self, ticket: Ticket) -> None:
        """End a request early; a ``Finished("cancelled")`` follows unless it has ended."""
        self._post(Cancelled(ticket.stream), refuse=False)

    def end_reasoning(self, ticket: Ticket) -> None:
        """Close the reasoning of a request that has a budget, if it is open then."""
        self._post(ReasoningEnded(ticket.stream), refuse=False)

    def stats(self) -> EngineStats:
        """What has been counted so far; from any thread, at no cost to the engine's."""
        with self._wake:
            n_posted = sum(isinstance(message, Submitted) for message in self._inbox)
        return engine_stats(self._counters, self._scheduler, n_posted)

    def slots(self) -> list[SlotState]:
        """What each slot does or did last; from any thread."""
        return slot_states(self._scheduler, self._latest)

    def save_slot(self, id_slot: int, path: Path) -> Future[SlotFile]:
        """Write what is cached of a slot's last tokens to a file.

        This and the two below wait for the slot to be idle. RequestError, raised or in the
        future, names what is wrong with the slot or the file; EngineStoppedError: too late.
        """
        return self._when_idle(id_slot, lambda: self._slot_cache.save(id_slot, path))

    def restore_slot(self, id_slot: int, path: Path) -> Future[SlotFile]:
        """Bring a file's tokens into the cache, where every slot finds them."""
        return self._when_idle(id_slot, lambda: self._slot_cache.restore(id_slot, path))

    def erase_slot(self, id_slot: int) -> Future[int]:
        """Free what is cached of a slot's last tokens; the result is their number."""
        return self._when_idle(id_slot, lambda: self._slot_cache.erase(id_slot))

    def close(self) -> None:
        """End every stream and the thread; waits for the step that is running."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def release(self) -> None:
        """Close, and let the memory of the device go. ``info``, ``tokenizer``, ``chat_template``
        and what ``slots`` and ``stats`` have counted stay."""
        self.close()
        del self._runner, self._slot_cache, self._streams, self._delivery, self._media_turns

    def _post(self, message: Message, *, refuse: bool = True) -> None:
        with self._wake:
            if refuse:
                self._check_running()
            self._inbox.append(message)
            self._wake.notify()

    def _when_idle(self, id_slot: int, action: Callable[[], T]) -> Future[T]:
        if not 0 <= id_slot < self.n_slots:
            raise RequestError(f"there is no slot {id_slot}, only 0 to {self.n_slots - 1}")
        future: Future[T] = Future()
        with self._wake:
            self._check_running()
            self._slot_tasks.append(SlotTask(id_slot, action, future))
            self._wake.notify()
        return future

    def _check_running(self) -> None:
        if self._stopping or self._fault:
            raise EngineStoppedError(self._fault or "the server is shutting down")

    # The engine's thread

    def _run(self) -> None:
        try:
            while self._take_inbox():
                self._scheduler.prompt_chunk = self._pace.n_beside
                if self._media_turns is not None:
                    self._media_turns.encode_one()
                for row, logits in self._waiting.take():
                    self._delivery.deliver(row, logits)
                plan = self._scheduler.plan(self._pace.n_tokens)
                if plan is not None:
                    self._step(plan)
                else:
                    self._flush()
                    self._waiting.wait(lambda: bool(self._inbox) or self._stopping)
                self._run_slot_tasks()
        except Exception as error:
            log.exception("the engine has failed")
            self._fault = f"the engine has failed: {error}"
        with self._wake:
            self._stopping = True
            left = [*self._streams, *(message.stream for message in self._inbox)]
        for task in self._slot_tasks:
            task.fail(EngineStoppedError(self._fault or "the server has stopped"))
        for stream in left:
            if self._fault:
                stream.fail(self._fault)
            else:
                stream.finish("cancelled", truncated=False)
        self._flush()

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
        with self._wake:
            posted, stopping = list(self._inbox), self._stopping
            self._inbox.clear()
        for message in posted:
            stream = message.stream
            if isinstance(message, Submitted):
                self._streams.add(stream)
            elif self._streams.get(stream.seq.id) is None:
                continue
            elif isinstance(message, Cancelled):
                self._streams.end(stream, "cancelled")
            else:
                stream.end_reasoning()
        return not stopping

    def _await_work(self) -> None:
        """Wait for something to do; the runner may use the time, a little at once."""
        pause: float | None = FIRST_PAUSE
        while True:
            with self._wake:
                if self._wake.wait_for(self._has_work, pause):
                    return
            pause = self._runner.use_pause()

    def _has_work(self) -> bool:
        return bool(self._inbox or self._streams or self._slot_tasks or self._stopping)

    def _run_slot_tasks(self) -> None:
        with self._wake:
            idle = [task for task in self._slot_tasks if self._scheduler.slots[task.slot] is None]
            self._slot_tasks = [task for task in self._slot_tasks if task not in idle]
        for task in idle:
            task.run()

    def _step(self, plan: Plan) -> None:
        for seq in plan.started:
            self._latest[seq.slot] = self._streams[seq.id]
            self._slot_cache.note(seq.slot, seq.tokens, seq.salt)
            self._counters.note_wait(self._streams[seq.id].start())
        rows = [row for chunk in plan.chunks for row in self._delivery.rows(chunk)]
        began = time.perf_counter()
        if plan.saves or plan.restores:
            self._runner.copy_states(plan.saves, plan.restores)
        patience = self._pace.patience(is_alone=len(self._streams) == 1)
        logits = self._runner.forward(plan.chunks, plan.copies, rows, self._flush, patience)
        if not plan.chunks:  # copies for one that waits for an image
            return
        n_tokens = sum(chunk.count for chunk in plan.chunks)
        self._pace.note(n_tokens, time.perf_counter() - began, any(row.mask for row in rows))
        self._soundness.inspect(rows, logits)
        self._scheduler.advance(plan)
        self._counters.note_forward(plan, len(self._scheduler.running))
        for chunk in plan.chunks:
            self._streams[chunk.seq.id].progress(chunk.start + chunk.count)
        for row, values in zip(rows, logits, strict=True):
            if values.waits:
                self._waiting.add(row, values)
            else:
                self._delivery.deliver(row, values)
        self._delivery.embed(plan.chunks)
        for chunk in plan.chunks:
            stream = self._streams.get(chunk.seq.id)
            if stream and chunk.is_final and stream.ends_with_prompt:
                self._counters.note_prompt(stream.timings())
                self._streams.end(stream, "limit")


def load_engine(
    path: Path, options: EngineOptions, progress: Callable[[float], None] = lambda share: None
) -> Engine:
    """Load a model and start its engine; ModelError or EngineError says why it cannot be."""
    model = load_model(path, options, progress)
    return Engine(
        model.runner, model.scheduler, model.tokenizer, model.chat_template, model.info, model.media
    )
