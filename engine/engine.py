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

from engine.admission import Admission
from engine.batch import OutputRow
from engine.chat.prompt import Template
from engine.constraint import Constraint
from engine.errors import EngineError, EngineStoppedError, NotFiniteError, RequestError
from engine.finite import Soundness, check_finite, not_finite
from engine.grammar import Grammars
from engine.loader import compile_model, free_memory, list_devices, load_model
from engine.media.span import MediaSpan
from engine.media_loader import Media
from engine.options import AdapterState, EngineOptions, ModelInfo
from engine.pace import Pace
from engine.request import Event, Request
from engine.runner import RowLogits, Runner
from engine.scheduler import Scheduler
from engine.sequence import Chunk, Plan, Sequence
from engine.slot_cache import SlotCache, SlotFile, SlotTask
from engine.stats import Counters, EngineStats, SlotState, engine_stats, slot_states
from engine.stream import Outbox, Stream
from engine.text.tokenizer import Tokenizer
from engine.waiting_rows import WaitingRows

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
        self._encoder = None if media is None else media.encoder
        self.n_ctx, self.n_slots = scheduler.n_ctx, len(scheduler.slots)
        self._runner, self._scheduler = runner, scheduler
        self._pace = Pace(scheduler.max_tokens)
        self._counters = Counters()
        self._slot_cache = SlotCache(scheduler, runner, info)
        self._slot_tasks: list[SlotTask] = []
        self._latest: list[Stream | None] = [None] * self.n_slots  # by slot
        self._streams: dict[int, Stream] = {}  # by the id of their sequence
        self._inbox: deque[tuple[str, Stream]] = deque()
        self._outbox: Outbox = deque()
        self._wake = threading.Condition()
        self._stopping, self._fault = False, ""
        self._grammars = Grammars(tokenizer, info.n_vocab)
        self._waiting = WaitingRows(self._wake)
        self._admission = Admission(scheduler, tokenizer, info, self._grammars, self._outbox)
        encode = self._admission.encode_plain
        self._soundness = Soundness(scheduler, info, encode, self.submit)
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
        self._post("submit", stream)
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
        self._post("cancel", ticket.stream, refuse=False)

    def end_reasoning(self, ticket: Ticket) -> None:
        """Close the reasoning of a request that has a budget, if it is open then."""
        self._post("end_reasoning", ticket.stream, refuse=False)

    def stats(self) -> EngineStats:
        """What has been counted so far; from any thread, at no cost to the engine's."""
        with self._wake:
            n_posted = sum(kind == "submit" for kind, _ in self._inbox)
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
        del self._runner, self._slot_cache, self._encoder

    def _post(self, kind: str, stream: Stream, *, refuse: bool = True) -> None:
        with self._wake:
            if refuse:
                self._check_running()
            self._inbox.append((kind, stream))
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
                self._encode_media()
                for row, logits in self._waiting.take():
                    self._try_deliver(row, logits)
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
            left = [*self._streams.values(), *(stream for _, stream in self._inbox)]
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
        for kind, stream in posted:
            if kind == "submit":
                self._streams[stream.seq.id] = stream
                self._scheduler.add(stream.seq)
            elif stream.seq.id not in self._streams:
                continue
            elif kind == "cancel":
                self._end(stream, "cancelled")
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

    def _encode_media(self) -> None:
        """Encode an image or a sound that a running request waits for, one between two steps.

        Others that show the same get it at once. A fault ends the request alone.
        """
        if self._encoder is None:
            return
        encoded = False
        for seq in self._scheduler.running.copy():
            while (missing := seq.missing_media) is not None:
                span = seq.request.media[missing]
                found = self._encoder.find(span)
                if found is None:
                    if encoded or (found := self._try_encode(seq, span)) is None:
                        break
                    encoded = True
                seq.embeddings[missing] = found

    def _try_encode(self, seq: Sequence, span: MediaSpan) -> Floats | None:
        """The embeddings of a span; None if that failed, which ends the request."""
        assert self._encoder is not None
        try:
            return self._encoder.encode(span)
        except Exception as error:
            log.exception("an image or a sound cannot be encoded")
            stream = self._streams[seq.id]
            self._leave(stream)
            stream.fail(f"an image or a sound cannot be encoded: {error}")
            return None

    def _step(self, plan: Plan) -> None:
        for seq in plan.started:
            self._latest[seq.slot] = self._streams[seq.id]
            self._slot_cache.note(seq.slot, seq.tokens, seq.salt)
            self._counters.note_wait(self._streams[seq.id].start())
        rows = [row for chunk in plan.chunks for row in self._rows(chunk)]
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
                self._try_deliver(row, values)
        self._embed(plan.chunks)
        for chunk in plan.chunks:
            stream = self._streams.get(chunk.seq.id)
            if stream and chunk.is_final and stream.ends_with_prompt:
                self._counters.note_prompt(stream.timings())
                self._end(stream, "limit")

    def _embed(self, chunks: Iterable[Chunk]) -> None:
        """Hand out the hidden states of a step to those who asked for them."""
        at = 0  # of the chunk's first token in the step
        for chunk in chunks:
            stream = self._streams.get(chunk.seq.id)
            if stream and chunk.outputs == "hidden":
                wanted = stream.pool.wants(chunk.start, chunk.count)
                first = at - chunk.start
                states = self._runner.hidden(range(wanted.start + first, wanted.stop + first))
                self._try(stream, self._take_states, stream, chunk, wanted.start, states)
            at += chunk.count

    def _take_states(self, stream: Stream, chunk: Chunk, start: int, states: Floats) -> None:
        check_finite(states, "the hidden states", stream.seq, self._runner)
        stream.pool.add(start, states)
        if chunk.is_final:
            stream.embed(stream.pool.vectors)

    def _rows(self, chunk: Chunk) -> list[OutputRow]:
        """The rows of logits that a chunk asks for."""
        seq, end = chunk.seq, chunk.start + chunk.count
        stream = self._streams[seq.id]
        n_vocab = self.info.n_vocab
        if chunk.outputs in ("none", "hidden"):
            return []
        if stream.request.pooling == "rank":  # an encoder's first token stands for the text
            return [OutputRow(chunk, chunk.start if self.info.is_encoder else end - 1, 1)]
        if chunk.outputs == "last":
            k = min(stream.k, n_vocab)
            return [OutputRow(chunk, end - 1, k, mask=stream.mask, scored=stream.scores)]
        k = max(stream.k, seq.request.prompt_logprobs or 0)
        picks = [*seq.tokens[chunk.start + 1 : end + 1], 0][: chunk.count]
        masks = [None] * (len(seq.tokens) - 1 - chunk.start) + [stream.mask]  # only the next
        return [
            OutputRow(chunk, chunk.start + i, min(k, n_vocab), pick, mask, scored=True)
            for i, (pick, mask) in enumerate(zip(picks, masks, strict=False))
        ]

    def _try_deliver(self, row: OutputRow, logits: RowLogits) -> None:
        """Deliver a row; what goes wrong with it ends its request, and no other.

        Parameters that no token can be drawn with are not all known before; a fault of the
        device shows in the next forward, too.
        """
        stream = self._streams.get(row.chunk.seq.id)  # None: an earlier row has ended it
        if stream is not None and stream.seq.state == "running":
            self._try(stream, self._deliver, stream, row, logits)

    def _try(self, stream: Stream, action: Callable[..., None], *args: object) -> None:
        try:
            action(*args)
        except Exception as error:
            if not isinstance(error, EngineError):
                log.exception("a request has failed")
            self._leave(stream)
            stream.fail(str(error) or type(error).__name__, isinstance(error, RequestError))
            if isinstance(error, NotFiniteError):
                self._soundness.note(stream.seq)

    def _deliver(self, stream: Stream, row: OutputRow, logits: RowLogits) -> None:
        """Score the prompt's next token, or sample the sequence's next one."""
        seq = stream.seq
        if seq.request.pooling == "rank":
            scores = logits.scores()
            check_finite(scores, "the scores", seq, self._runner)
            stream.embed(scores[None])
            return
        if logits.broken:
            raise not_finite("the logits", seq, self._runner)
        if row.chunk.outputs == "all":
            stream.score_prompt(row.position, logits)
        if row.position + 1 < len(seq.tokens) or seq.request.max_tokens == 0:
            return
        self._scheduler.append(seq, stream.sample(logits))
        if seq.n_generated == 1:
            self._counters.note_prompt(stream.timings())
        if stream.deaf:
            self._end(stream, "cancelled")
        elif stream.reason is not None:
            self._end(stream, stream.reason)
        elif self._scheduler.is_full(seq) and not self._scheduler.shifts(seq):
            self._end(stream, "limit", truncated=True)
        elif 0 <= seq.request.max_tokens <= seq.n_generated or stream.is_overdue:
            self._end(stream, "limit")
        elif self._scheduler.is_full(seq):
            self._scheduler.shift(seq)

    def _end(self, stream: Stream, reason: str, truncated: bool = False) -> None:
        self._leave(stream)
        stream.finish(reason, truncated or stream.seq.n_dropped > 0)  # type: ignore[arg-type]

    def _leave(self, stream: Stream) -> None:
        """The one place where a request leaves the engine; idempotent."""
        self._scheduler.finish(stream.seq)
        if self._streams.pop(stream.seq.id, None):
            self._counters.note_generation(stream.timings())
        self._runner.compile_later()


def load_engine(
    path: Path, options: EngineOptions, progress: Callable[[float], None] = lambda share: None
) -> Engine:
    """Load a model and start its engine; ModelError or EngineError says why it cannot be."""
    model = load_model(path, options, progress)
    return Engine(
        model.runner, model.scheduler, model.tokenizer, model.chat_template, model.info, model.media
    )
