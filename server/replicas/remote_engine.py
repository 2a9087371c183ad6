"""The engine of a front: tokenizer, template and metadata here, weights in hosts elsewhere.

No request is lost with a host: another one goes on where it was, after what the client has had
(engine.request.Resume), and the client sees a pause. Where no host is left, a request waits for
one to come back. One that ``TRIES`` of them could not bring a token further fails.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import fields, replace

from gguf_serve.engine.errors import ContextOverflowError, EngineStoppedError, RequestError
from gguf_serve.engine.grammar.compile import Grammars
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.loading.texts import Texts
from gguf_serve.engine.options import AdapterState, ModelInfo
from gguf_serve.engine.request import Event, Failed, Finished, Request
from gguf_serve.engine.stats import EngineStats, ReplicaStats, SlotFile, SlotState
from gguf_serve.server.http.flight import Flight
from gguf_serve.server.replicas.adapters import Adapters
from gguf_serve.server.replicas.link import Link
from gguf_serve.server.replicas.messages import Hello
from gguf_serve.server.replicas.router import Router

log = logging.getLogger(__name__)
TRIES = 3  # after the engine that made the last token
PATIENCE = 120.0  # seconds that a request waits for an engine
CALL_SECONDS = 5.0  # that an engine may take to tell of its slots
Address = tuple[str, int]


class RemoteEngine:
    """``server.interface.Engine``, by the engines of any number of hosts."""

    def __init__(self, texts: Texts, key: bytes, patience: float = PATIENCE) -> None:
        """``key``: the hosts'. Hosts come with ``update``; ``wait`` for the first."""
        self.speech = texts.speech
        self.tokenizer, self.chat_template, self.media = (
            texts.tokenizer, texts.chat_template, texts.media,
        )  # fmt: skip
        # Requests by why they went where they did, and by their engine, "" if it is gone.
        self.routed: Counter[tuple[str, str]] = Counter()
        self.n_moved = self.n_lost = 0  # requests that went on elsewhere; links
        self._key, self._patience = key, patience
        self._changed = threading.Condition(threading.RLock())
        self._links: dict[str, Link] = {}
        self._addresses: dict[str, Address] = {}
        self._joining: set[str] = set()
        self._router = Router()
        self._waiting: dict[Flight, tuple[float, str]] = {}  # until when, and why
        self._link_of: dict[Flight, Link] = {}
        self._adapters = Adapters(lambda: self._up)
        self._info: ModelInfo | None = None
        self._n_ctx = 0
        self._grammars: Grammars | None = None
        self._last_stats: EngineStats | None = None
        self._is_closed = False
        threading.Thread(target=self._watch, name="replicas", daemon=True).start()

    # The hosts

    def update(self, addresses: Mapping[str, Address]) -> None:
        """These hosts are there, by their ids; one that is not named is kept while it answers."""
        with self._changed:
            self._addresses = dict(addresses)
        self._join_missing()

    def wait(self, seconds: float) -> bool:
        """Until an engine is there; False: none came."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._up), seconds)

    def link_is_up(self, link: Link, hello: Hello) -> None:
        info = hello.info
        with self._changed:
            if self._info is not None and info.fingerprint != self._info.fingerprint:
                log.error("engine %s serves another file, %s: it is not used", link.id, info.path)
                link.is_draining = True
                return
            if self._info is None:
                self._info, self._n_ctx = info, hello.n_ctx
                self._adapters.begin(hello.adapters)
                self._grammars = Grammars(self.tokenizer, info.n_vocab)
            self._n_ctx = min(self._n_ctx, hello.n_ctx)
        log.info("engine %s is there: %d slots", link.id, hello.n_slots)
        # In another thread than the link's own, which hears what the engine answers.
        threading.Thread(target=self._equip, args=(link,), name=link.id, daemon=True).start()

    def _equip(self, link: Link) -> None:
        """Have an engine take requests, once it has the adapters that they may ask for."""
        with self._changed:
            self._changed.wait_for(lambda: self._links.get(link.id) is link or link.is_lost)
        self._adapters.equip(link)
        with self._changed:
            self._changed.notify_all()
            waiting = list(self._waiting)
        for flight in waiting:
            self._go_on(flight)

    def link_is_lost(self, link: Link, flights: list[Flight]) -> None:
        with self._changed:
            if self._links.get(link.id) is link:
                del self._links[link.id]
            self._router.forget(link.id)
            for reason in [reason for reason, id in self.routed if id == link.id]:
                self.routed[reason, ""] += self.routed.pop((reason, link.id))
            self.n_lost += 1
            is_closed = self._is_closed
        if not is_closed:
            log.warning("engine %s is gone; %d requests go on elsewhere", link.id, len(flights))
        for flight in flights:
            self._move(flight, f"the engine {link.id} is gone")

    def has_ended(self, link: Link, flight: Flight, event: Finished | Failed) -> None:
        is_given_up = isinstance(event, Finished) and event.reason == "cancelled"
        is_fault = isinstance(event, Failed) and not event.by_request
        if (is_given_up and not flight.is_cancelled) or is_fault:
            why = event.message if isinstance(event, Failed) else f"the engine {link.id} has ended"
            self._move(flight, why)
            return
        with self._changed:
            self._link_of.pop(flight, None)
            if not link.is_lost:
                self._router.note(link.place, flight.request, flight.tokens, flight.request.session)
        flight.hear(event)

    @property
    def _up(self) -> list[Link]:
        """In an order that all fronts share."""
        return [link for _, link in sorted(self._links.items()) if link.takes_requests]

    def _join_missing(self) -> None:
        with self._changed:
            if self._is_closed:
                return
            missing = self._addresses.keys() - self._links.keys() - self._joining
            self._joining |= missing
        for id in missing:
            threading.Thread(target=self._join, args=(id,), name=f"join {id}", daemon=True).start()

    def _join(self, id: str) -> None:
        try:
            link = Link(id, self._addresses[id], self._key, self)
        except (OSError, KeyError) as error:
            log.debug("engine %s cannot be reached: %s", id, error)
        else:
            with self._changed:
                if not link.is_lost:
                    self._links[id] = link
                self._changed.notify_all()
        finally:
            self._joining.discard(id)

    def _watch(self) -> None:
        """Try hosts again that could not be reached, and end requests that have waited enough."""
        while not self._is_closed:
            time.sleep(1.0)
            self._join_missing()
            now = time.monotonic()
            for flight, (until, why) in list(self._waiting.items()):
                if now > until and self._waiting.pop(flight, None) is not None:
                    flight.tell(Failed(f"{why}, and none has come for {self._patience:g} seconds"))

    # Requests

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Flight:
        """As the engine's own; what only an engine can find wrong comes as ``Failed``."""
        n = len(request.prompt)
        if n > self.n_ctx or (n == self.n_ctx and request.goes_on):
            raise ContextOverflowError(n, self.n_ctx)
        request.sampling.check()
        if request.constraint is not None:
            self.compile(request.constraint)
        if self._is_closed:
            raise EngineStoppedError("the server is ending")
        if request.sampling.seed < 0:  # another engine must be able to draw the same
            seed = secrets.randbits(31)
            request = replace(request, sampling=dataclasses.replace(request.sampling, seed=seed))
        request = self._adapters.of_request(request)
        can_resume = self.info.denoising is None and request.has_text
        flight = Flight(replace(request, marks=can_resume), on_event, can_resume=can_resume)
        self._send(flight, "no engine is there")
        return flight

    def cancel(self, ticket: Flight) -> None:
        with self._changed:
            ticket.is_cancelled = True
            link = self._link_of.get(ticket)
            was_waiting = self._waiting.pop(ticket, None) is not None
        if was_waiting:
            ticket.tell(ticket.cancelled())
        elif link is not None:
            link.cancel(ticket)

    def end_reasoning(self, ticket: Flight) -> None:
        link = self._link_of.get(ticket)
        if link is not None:
            link.end_reasoning(ticket)

    def _move(self, flight: Flight, why: str) -> None:
        """Its engine is gone, or has failed."""
        with self._changed:
            self._link_of.pop(flight, None)
            is_over = flight.is_cancelled or self._is_closed
        if is_over:
            flight.tell(flight.cancelled())
            return
        flight.lose()
        if flight.n_tries > TRIES:
            flight.tell(Failed(f"{why}, and {TRIES} others before it"))
            return
        self.n_moved += 1
        log.info("a request goes on after %d tokens: %s", len(flight.tokens), why)
        self._send(flight, why)

    def _go_on(self, flight: Flight) -> None:
        """One that has waited."""
        with self._changed:
            waited = self._waiting.pop(flight, None)
        if waited is not None:
            self._send(flight, waited[1])

    def _send(self, flight: Flight, why: str) -> None:
        """``why``: it cannot be served, if it waits in vain."""
        try:
            self._adapters.check(flight.request)
        except RequestError as error:  # unloaded while it was between two engines
            flight.tell(Failed(str(error), by_request=True))
            return
        request = flight.rest()
        while True:
            with self._changed:
                if flight.is_cancelled:  # while it was between two engines
                    break
                chosen = self._choose(flight.request)
                if chosen is None:
                    self._waiting[flight] = time.monotonic() + self._patience, why
                    return
                link, slot = chosen
                asked = self._adapters.for_engine(link, replace(request, id_slot=slot))
                if asked is None:  # an adapter has been unloaded since
                    continue
                self._link_of[flight] = link
            if link.submit(flight, asked):
                if flight.is_cancelled:  # before the link knew of it
                    link.cancel(flight)
                return
        flight.tell(flight.cancelled())

    def _choose(self, request: Request) -> tuple[Link, int] | None:
        """An engine, and which of its slots, -1 for any; None: there is none."""
        up = [link for link in self._up if self._adapters.for_engine(link, request) is not None]
        if not up:
            return None
        if request.id_slot >= 0:
            link, slot = self._at(request.id_slot)
            if link not in up:
                return None
            self.routed["slot", link.id] += 1
            return link, slot
        route = self._router.choose([link.place for link in up], request, request.session)
        self.routed[route.reason, route.id] += 1
        log.debug("to engine %s by %s: %d tokens shared", route.id, route.reason, route.n_shared)
        link = self._links[route.id]
        if request.cache_prompt:
            self._router.keep(link.place, route.pages)
        self._router.note_session(request.session, route.id)
        return link, -1

    def compile(self, constraint: Constraint) -> None:
        self.info  # noqa: B018  # raises without one
        assert self._grammars is not None
        self._grammars.compiled(constraint)

    # What the engines are

    @property
    def info(self) -> ModelInfo:
        if self._info is None:
            raise EngineStoppedError("no engine is there yet")
        return self._info

    @property
    def n_ctx(self) -> int:
        return self._n_ctx

    @property
    def n_slots(self) -> int:
        return max(sum(link.place.n_slots for link in self._up), 1)

    @property
    def healthy(self) -> bool:
        return bool(self._up) and not self._is_closed

    @property
    def fault(self) -> str:
        states = [link.state for link in list(self._links.values()) if link.state is not None]
        faults = {state.fault for state in states if state.fault}
        return "" if self._up else "; ".join(sorted(faults)) or "no engine can be reached"

    def adapters(self) -> tuple[AdapterState, ...]:
        return self._adapters.states()

    def set_adapters(self, scales: Iterable[tuple[int, float]]) -> None:
        """For requests of this front, whatever engine serves them."""
        self._adapters.set_scales(scales)

    def load_adapter(self, path: Path, name: str, replaces: int | None = None) -> AdapterState:
        """Into every engine, and into those that come later, or into none."""
        return self._adapters.load(path, name, replaces)

    def unload_adapter(self, id: int) -> None:
        self._adapters.unload(id)

    def stats(self) -> EngineStats:
        """Of all engines together, as of their last beats."""
        with self._changed:
            states = [link.state for link in self._links.values()]
            known = [state.stats for state in states if state is not None]
            replicas = ReplicaStats(
                n_engines=len(self._up), n_lost=self.n_lost, n_moved=self.n_moved,
                routed=tuple((*where, n) for where, n in sorted(self.routed.items())),
            )  # fmt: skip
        if known:
            self._last_stats = total(known)
        if self._last_stats is None:
            raise EngineStoppedError("no engine has told its numbers yet")
        return replace(self._last_stats, replicas=replicas)

    def slots(self) -> list[SlotState]:
        """Of all engines, one after the other."""
        calls = [link.call("slots") for link in self._up]
        states = [state for call in calls for state in call.result(CALL_SECONDS)]
        return [replace(state, id=i) for i, state in enumerate(states)]

    def save_slot(self, id_slot: int, path: Path) -> Future[SlotFile]:
        link, slot = self._at(id_slot)
        return link.call("save_slot", slot, path)

    def restore_slot(self, id_slot: int, path: Path) -> Future[SlotFile]:
        link, slot = self._at(id_slot)
        return link.call("restore_slot", slot, path)

    def erase_slot(self, id_slot: int) -> Future[int]:
        link, slot = self._at(id_slot)
        return link.call("erase_slot", slot)

    def _at(self, id_slot: int) -> tuple[Link, int]:
        """The engine that has a slot, and which of its own it is."""
        left = id_slot % self.n_slots
        for link in self._up:
            if left < link.place.n_slots:
                return link, left
            left -= link.place.n_slots
        raise RequestError(f"there is no slot {id_slot}: no engine is there")

    def wait_until_kept(self, seconds: float) -> bool:
        """What engines elsewhere write to their disks is theirs."""
        return True

    def close(self) -> None:
        """Leave the hosts, and end every request as cancelled."""
        with self._changed:
            self._is_closed = True
            links, waiting = list(self._links.values()), list(self._waiting)
            self._waiting.clear()
        for flight in waiting:
            flight.tell(flight.cancelled())
        for link in links:
            link.close()

    release = close


Numbers = TypeVar("Numbers", bound=Struct)


def total(parts: Sequence[Numbers]) -> Numbers:
    """Sums of all fields; of ``page_size`` and ``n_tokens_max`` the largest."""
    changes: dict[str, Any] = {}
    for field in fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        if field.name in ("page_size", "n_tokens_max"):
            changes[field.name] = max(values)
        elif isinstance(values[0], tuple):
            changes[field.name] = tuple(map(sum, zip(*values, strict=True)))
        elif isinstance(values[0], Struct):
            changes[field.name] = total([value for value in values if value is not None])
        elif isinstance(values[0], int | float):
            changes[field.name] = sum(values)
    return replace(parts[0], **changes)
