"""Which engine a request goes to: the one that has most of its prompt cached, unless it is busy.

A front remembers what it has sent where, as names of pages (engine/disk_cache/names.py): that of
a page tells all tokens before it. Engines evict pages without a word, so it remembers no more of
each than its cache has room for, the latest. Integers, bytes and dictionaries only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Literal

from msgspec import Struct

from gguf_serve.engine.disk_cache.names import beginning, chain
from gguf_serve.engine.request import Request

Reason = Literal["prefix", "session", "load"]
BESIDE = 64  # tokens of prompt that cost a request as much as another one beside it
IN_LINE = 1024  # and as much as another one before it, in line for a slot
LEAST_SHARED = 2  # pages, below which a session says more
SESSIONS = 4096  # that are remembered


class Place(Struct):
    """An engine as the router sees it."""

    id: str
    n_slots: int
    page_size: int
    n_pages: int  # of its cache
    n_requests: int = 0  # of this front and others, on their way or in a slot


class Route(Struct, frozen=True):
    """``n_shared``: tokens of the prompt that the engine should have; ``pages``: its names."""

    id: str
    reason: Reason
    n_shared: int
    pages: list[bytes]


class Router:
    """Not thread-safe."""

    def __init__(self) -> None:
        self._pages: dict[str, OrderedDict[bytes, None]] = {}
        self._sessions: OrderedDict[str, str] = OrderedDict()

    def choose(self, places: Sequence[Place], request: Request, session: str = "") -> Route:
        """One of ``places``, of which there is at least one; ``note`` what comes of it."""
        names = page_names(request, places[0].page_size)
        shared = {place.id: self._n_shared(place, names) for place in places}
        if not any(shared.values()) and session:
            return Route(self._of_session(places, session), "session", 0, names)

        def cost(place: Place) -> tuple[int, int]:
            in_line = max(place.n_requests + 1 - place.n_slots, 0)
            left = len(request.prompt) - shared[place.id]
            return left + BESIDE * place.n_requests + IN_LINE * in_line, place.n_requests

        best = min(places, key=cost)
        reason: Reason = "prefix" if shared[best.id] else "load"
        return Route(best.id, reason, shared[best.id], names)

    def note(self, place: Place, request: Request, generated: Iterable[int], session: str) -> None:
        """The engine has computed a prompt, and what has been generated after it."""
        self.note_session(session, place.id)
        if request.cache_prompt:
            self.keep(place, page_names(request, place.page_size, generated))

    def note_session(self, session: str, id: str) -> None:
        """A session's last engine; "": of none."""
        if session:
            self._sessions[session] = id
            self._sessions.move_to_end(session)
            if len(self._sessions) > SESSIONS:
                self._sessions.popitem(last=False)

    def keep(self, place: Place, names: Iterable[bytes]) -> None:
        """An engine has these pages now, or soon."""
        pages = self._pages.setdefault(place.id, OrderedDict())
        for name in names:
            pages[name] = None
            pages.move_to_end(name)
        for name in list(islice(pages, max(len(pages) - place.n_pages, 0))):
            del pages[name]

    def forget(self, id: str) -> None:
        """An engine is gone, and what it had."""
        self._pages.pop(id, None)
        for session in [s for s, place in self._sessions.items() if place == id]:
            del self._sessions[session]

    def _n_shared(self, place: Place, names: Sequence[bytes]) -> int:
        pages = self._pages.get(place.id, OrderedDict())
        n = next((i for i, name in enumerate(names) if name not in pages), len(names))
        return n * place.page_size if n >= min(LEAST_SHARED, len(names)) else 0

    def _of_session(self, places: Sequence[Place], session: str) -> str:
        """The engine that has served it, or the one that every front would choose first."""
        known = self._sessions.get(session)
        if any(place.id == known for place in places):
            assert known is not None
            return known
        return max(places, key=lambda place: blake2b(f"{session} {place.id}".encode()).digest()).id


def page_names(request: Request, page_size: int, generated: Iterable[int] = ()) -> list[bytes]:
    """The names of the full pages of a request, whatever model computes them."""
    begin = beginning(b"", salt=f"{request.adapters} {request.cache_salt}")
    tokens = [*request.prompt, *generated]
    return [page.key for page in chain(b"", begin, tokens, page_size)]
