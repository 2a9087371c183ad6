"""LoRA adapters of a front, which all of its engines have, each by a number of its own.

They belong to the front that has loaded them: another one sees nothing of them, and with the
connection to an engine they leave it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from gguf_serve.engine.errors import EngineError, EngineStoppedError, RequestError
from gguf_serve.engine.options import AdapterState
from gguf_serve.engine.request import Request
from gguf_serve.server.replicas.link import Link

log = logging.getLogger(__name__)
LOAD_SECONDS = 60.0  # that engines may take to load an adapter
UNLOAD_SECONDS = 5.0


class Adapters:
    """Those of the start, which have the same numbers everywhere, and those that were loaded
    since. For any thread."""

    def __init__(self, engines: Callable[[], Sequence[Link]]) -> None:
        """``engines``: those that are equipped."""
        self._engines = engines
        self._turn = threading.Lock()  # of what loads and unloads, and of engines that come
        self._changing = threading.Lock()  # the next two, which nobody holds for long
        self._states: dict[int, AdapterState] = {}  # replaced as a whole
        self._scales: tuple[tuple[int, float], ...] | None = None  # None: those of the start
        self._at_start: frozenset[int] = frozenset()
        self._ids = itertools.count()

    def begin(self, at_start: Sequence[AdapterState]) -> None:
        """The first engine has come, with these."""
        self._states = {each.id: each for each in at_start}
        self._at_start = frozenset(self._states)
        self._ids = itertools.count(max(self._at_start, default=-1) + 1)

    def states(self) -> tuple[AdapterState, ...]:
        return tuple(self._states.values())

    def set_scales(self, scales: Iterable[tuple[int, float]]) -> None:
        """Of requests to come that name none; others become 0. RequestError for an id that no
        adapter has."""
        asked = tuple(scales)
        with self._changing:
            self._check(id for id, _ in asked)
            found = dict(asked)
            self._scales = asked
            self._states = {
                id: replace(each, scale=found.get(id, 0.0)) for id, each in self._states.items()
            }

    def of_request(self, request: Request) -> Request:
        """With the scales that it has wherever it goes. RequestError for an id that no adapter
        has."""
        if request.adapters is None:
            return request if self._scales is None else replace(request, adapters=self._scales)
        self.check(request)
        return request

    def for_engine(self, link: Link, request: Request) -> Request | None:
        """With the numbers that an engine has given them; None: it has not all of them."""
        if request.adapters is None:
            return request
        theirs = [
            (id if id in self._at_start else link.adapter_ids.get(id), scale)
            for id, scale in request.adapters
        ]
        found = tuple((id, scale) for id, scale in theirs if id is not None)
        return replace(request, adapters=found) if len(found) == len(theirs) else None

    def check(self, request: Request) -> None:
        """RequestError for an id that no adapter has, or has any more."""
        self._check(id for id, _ in request.adapters or ())

    def load(self, path: Path, name: str, replaces: int | None = None) -> AdapterState:
        """Load a file into all engines, or into none; ``replaces``: the id of one that goes once
        the new one is there. RequestError says which engine cannot have it, and why."""
        with self._turn:
            if replaces is not None:
                self._check_unloadable(replaces)
            calls = {link: link.call("load_adapter", path, name) for link in self._engines()}
            try:
                loaded = results(calls)
            except RequestError:
                for link, call in calls.items():
                    call.add_done_callback(partial(undo, link))
                raise
            id = next(self._ids)
            for link, state in loaded.items():
                link.adapter_ids[id] = state.id
            added = replace(next(iter(loaded.values())), id=id)
            with self._changing:
                self._states = {**self._states, id: added}
            if replaces is not None:
                self._unload(replaces)
            return added

    def unload(self, id: int) -> None:
        """Have no further request use an adapter. RequestError for one that is not there, or that
        the options named."""
        with self._turn:
            self._check_unloadable(id)
            self._unload(id)

    def equip(self, link: Link) -> None:
        """Have an engine that has come have what the others have; what it cannot have is logged,
        and requests for that go elsewhere."""
        with self._turn:
            for id, adapter in self._states.items():
                if id not in self._at_start:
                    self._bring(link, id, adapter)
            link.is_equipped = True

    def _bring(self, link: Link, id: int, adapter: AdapterState) -> None:
        call = link.call("load_adapter", adapter.path, adapter.name)
        try:
            loaded = call.result(LOAD_SECONDS)
            if loaded.fingerprint != adapter.fingerprint:
                raise RequestError(f"{adapter.path} is not the file any more that was loaded")
        except (EngineError, TimeoutError) as error:
            call.add_done_callback(partial(undo, link))
            if not link.is_lost:
                why = str(error) or f"it takes more than {LOAD_SECONDS:g} seconds"
                log.error(
                    "engine %s is without the LoRA adapter %s: %s", link.id, adapter.name, why
                )
        else:
            link.adapter_ids[id] = loaded.id

    def _check(self, ids: Iterable[int]) -> None:
        known = self._states
        for id in ids:
            if id not in known:
                there = ", ".join(map(str, sorted(known))) or "none"
                raise RequestError(f"there is no LoRA adapter {id}: the ids are {there}")

    def _check_unloadable(self, id: int) -> None:
        self._check([id])
        if id in self._at_start:
            name = self._states[id].name
            raise RequestError(f"the LoRA adapter {name} was loaded at the start: it stays")

    def _unload(self, id: int) -> None:
        with self._changing:
            self._states = {other: each for other, each in self._states.items() if other != id}
            if self._scales is not None:
                self._scales = tuple(each for each in self._scales if each[0] != id)
        theirs = [(link, link.adapter_ids.pop(id, None)) for link in self._engines()]
        calls = [
            (e, e.call("unload_adapter", number)) for e, number in theirs if number is not None
        ]
        for link, call in calls:
            try:
                call.result(UNLOAD_SECONDS)
            except (EngineError, TimeoutError) as error:
                log.warning("engine %s keeps a LoRA adapter: %s", link.id, error)


def results(calls: Mapping[Link, Future[AdapterState]]) -> dict[Link, AdapterState]:
    """What has been loaded, without engines that are gone since. RequestError if one of the others
    cannot, or if their files differ."""
    until = time.monotonic() + LOAD_SECONDS
    found: dict[Link, AdapterState] = {}
    failed: dict[str, str] = {}
    for link, call in calls.items():
        try:
            found[link] = call.result(max(until - time.monotonic(), 0))
        except EngineStoppedError as error:
            log.info("%s", error)
        except TimeoutError:
            failed[link.id] = f"it takes more than {LOAD_SECONDS:g} seconds"
        except EngineError as error:
            failed[link.id] = str(error)
    if failed:
        is_same = len(failed) == len(calls) and len(set(failed.values())) == 1
        told = [reason if is_same else f"engine {id}: {reason}" for id, reason in failed.items()]
        raise RequestError("; ".join(dict.fromkeys(told)))
    if not found:
        raise RequestError("no engine is there to load a LoRA adapter")
    if len({state.fingerprint for state in found.values()}) > 1:
        raise RequestError("the engines' files of this path are not the same")
    return found


def undo(link: Link, call: Future[Any]) -> None:
    """Have an engine unload what it has loaded."""
    if not call.cancelled() and call.exception() is None:
        link.call("unload_adapter", call.result().id)
