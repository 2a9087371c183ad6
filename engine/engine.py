"""The engine: one model, served by one thread that owns the device (``serving/loop.py``).

What is here may be called from any thread; a request's events come from the engine's.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from gguf_serve.engine.completion.finite import Soundness
from gguf_serve.engine.completion.stream import Outbox, Stream
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.forward.following import follow
from gguf_serve.engine.forward.slot_cache import SlotCache
from gguf_serve.engine.forward.stages import Done, Leading
from gguf_serve.engine.grammar.compile import Grammars
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.loading.loader import (
    Model,
    compile_model,
    free_memory,
    list_devices,
    load_model,
    load_stage,
)
from gguf_serve.engine.model.wire import Wire
from gguf_serve.engine.options import AdapterState, EngineOptions
from gguf_serve.engine.request import Event, Request
from gguf_serve.engine.serving.adapter_room import Adapters
from gguf_serve.engine.serving.admission import Admission
from gguf_serve.engine.serving.disk import DiskCache, DiskOptions, disk_options, host_options
from gguf_serve.engine.serving.loop import Loop
from gguf_serve.engine.serving.mailbox import Cancelled, Mailbox, ReasoningEnded, Submitted, Task
from gguf_serve.engine.serving.slots import Slots
from gguf_serve.engine.speculation.models.timed_steps import prices_of_target
from gguf_serve.engine.speculation.speculation import Speculation
from gguf_serve.engine.stats import Counters, EngineStats, SlotFile, SlotState, engine_stats
from gguf_serve.kernels.opencl.missing import no_driver

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "Engine", "Ticket", "compile_model", "free_memory", "list_devices", "load_engine", "no_driver",
    "serve_stage",
]  # fmt: skip


class Ticket(Struct, frozen=True, eq=False):
    """A submitted request, for ``cancel``."""

    stream: Stream


class Engine:
    """Serves requests for one loaded model."""

    def __init__(
        self,
        model: Model,
        disk: DiskOptions | None = None,
        replacements: Callable[[], Sequence[Leading]] | None = None,
    ) -> None:
        """``disk``: where pages are kept beside the device. ``replacements``: see Recovery; None:
        no other process has a part of the model."""
        self.tokenizer, self.chat_template, self.info = (
            model.tokenizer, model.chat_template, model.info
        )  # fmt: skip
        self.media = None if model.media is None else model.media.reader
        self.speech = model.speech
        runner, scheduler = model.runner, model.scheduler
        self.n_ctx, self.n_slots = scheduler.n_ctx, len(scheduler.slots)
        self._scheduler, self._counters, self._mailbox = scheduler, Counters(), Mailbox()
        outbox: Outbox = deque()
        beside = None if model.drafter is None else model.drafter.pages
        slot_cache = SlotCache(scheduler, runner, model.info, beside)
        self._slots = Slots(slot_cache, scheduler, self._mailbox)
        self._disk = None if disk is None else DiskCache(
            disk, scheduler, runner, model.info, slot_cache.made_with, lambda: self._loop.speed,
            self._mailbox.notify, beside,
        )  # fmt: skip
        self._grammars = Grammars(model.tokenizer, model.info.n_vocab)
        prices = None if model.drafter is None else prices_of_target(runner, scheduler.max_tokens)
        self._speculation = Speculation(scheduler, model.drafter, prices)
        self._admission = Admission(
            scheduler, model.tokenizer, model.info, self._grammars, outbox,
            self._speculation.by_model, None if model.media is None else model.media.speaker,
        )  # fmt: skip
        self._adapters = None if model.reserved is None else Adapters(
            model.reserved, self._admission, self._between_steps
        )  # fmt: skip
        self._soundness = Soundness(
            scheduler, model.info, self._admission.encode_plain, self.submit,
            lambda seq: self._loop.forget(seq),
        )  # fmt: skip
        self._loop = Loop(
            model, self._mailbox, outbox, self._slots, self._speculation, self._soundness,
            self._counters, self._disk, replacements,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._loop.run, name="engine", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        return self._thread.is_alive() and not (self._mailbox.stopping or self.fault)

    @property
    def fault(self) -> str:
        """What has ended the engine, keeps it from computing, or is wrong with whatever the model
        computes; "": nothing."""
        return self._mailbox.fault or self._loop.loss or self._soundness.fault

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
        self._adapters = None
        self._loop.release()


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
    return Engine(model, disk, replacements)


def serve_stage(wire: Wire, wires: Iterable[Wire | None]) -> None:
    """Have a share of the layers of the model that the first stage loads, at the other end of
    ``wire``, until it is gone. ``wires``: to all stages, None for this one. Raises EngineError."""
    try:
        runner = load_stage(wire, list(wires))
    except Exception as error:
        wire.send(Done(str(error)))
        raise
    follow(runner, wire)
