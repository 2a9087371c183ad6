"""Streams that go on when their connection breaks, and are taken up again (llama-server's).

A client names its conversation when it asks (the header ``X-Conversation-Id``). What it is sent is
kept beside, so that it may come back and have the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial

from msgspec import Struct, field
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gguf_serve.server.errors import ApiError, invalid
from gguf_serve.server.http.client import client
from gguf_serve.server.http.framing import Framing
from gguf_serve.server.http.reply import Translator, event_source
from gguf_serve.server.http.room import LEASE
from gguf_serve.server.http.stream import EventStream
from gguf_serve.server.kept.run import LostError, Run

# llama-server's
KEPT_SECONDS = 300.0  # after the last byte
KEPT_BYTES = 4 * 2**20  # the latest of a stream
LOST = "Stream offset lost, please restart"
Key = tuple[str, str]  # whose, and of which conversation


class KeptStream(Struct, eq=False):
    """One that runs, or has ended not long ago."""

    run: Run
    framing: Framing
    ping_interval: float
    started_at: int = field(default_factory=lambda: int(time.time()))
    completed_at: int = 0  # 0: it runs

    @property
    def n_reserved(self) -> int:
        """Bytes that it may have."""
        run = self.run
        return KEPT_BYTES if run.is_running else run.n_bytes - run.n_lost


class KeptStreams:
    """The last stream of each conversation, by whose it is. Used in the event loop."""

    def __init__(self, most: int, timeout: float, has_keys: Callable[[], bool]) -> None:
        """``most``: bytes of all streams together. ``timeout``: seconds for a client that does not
        read. ``has_keys``: whether clients have keys."""
        self._most, self._timeout, self._has_keys = most, timeout, has_keys
        self._kept: dict[Key, KeptStream] = {}  # the oldest first

    @property
    def n_running(self) -> int:
        return sum(kept.run.is_running for kept in self._kept.values())

    async def begin(
        self, conversation: str, stream: EventStream, dialect: Translator, ping_interval: float
    ) -> ASGIApp | None:
        """The answer to who asks for a stream that is kept, which ends the conversation's last
        one; None: there is no room to keep it. ApiError where it fails before its first byte."""
        self.stop(conversation)
        if not self._make_room():
            return None
        key = self._key(conversation)
        run = Run(stream, dialect, most=KEPT_BYTES, on_end=lambda: self._ended(key, kept))
        kept = KeptStream(run, dialect.framing, ping_interval)
        self._kept[key] = kept
        try:
            await run.begun()
        except ApiError:
            self._drop(key, kept)
            raise
        return released(self._followed(kept, 0))

    def follow(self, conversation: str, start: int) -> Response:
        """What was sent from byte ``start`` on, and what follows. ApiError if it is not there."""
        kept = self._kept.get(self._key(conversation))
        if kept is None:
            raise ApiError("not_found_error", "Stream not found or expired")
        if start < kept.run.n_lost:
            raise invalid(LOST)
        return self._followed(kept, start)

    def stop(self, conversation: str) -> None:
        """End and forget a stream, if there is one."""
        kept = self._kept.pop(self._key(conversation), None)
        if kept is not None:
            kept.run.cancel()

    def listed(self, conversations: Iterable[str]) -> list[dict[str, object]]:
        """How those stand, and those whose name goes on with "::" and a model's."""
        asked = tuple(dict.fromkeys(conversations))
        starts = tuple(f"{name}::" for name in asked)
        owner = self._key("")[0]
        return [
            {
                "conversation_id": name, "is_done": not kept.run.is_running,
                "total_bytes": kept.run.n_bytes, "started_at": kept.started_at,
                "completed_at": kept.completed_at,
            }
            for (whose, name), kept in self._kept.items()
            if whose == owner and (name in asked or name.startswith(starts))
        ]  # fmt: skip

    def _key(self, conversation: str) -> Key:
        """Without keys a name is all that says whose it is: addresses change with the network."""
        return (client.get() if self._has_keys() else "", conversation)

    def _followed(self, kept: KeptStream, start: int) -> Response:
        return event_source(
            _bodies(kept.run, start), kept.framing, kept.ping_interval, self._timeout,
            kept.run.stream.stop,
        )  # fmt: skip

    def _make_room(self) -> bool:
        """Room for one more; the oldest that have ended go for it."""
        for key, kept in list(self._kept.items()):
            if self._n_reserved + KEPT_BYTES <= self._most:
                break
            if not kept.run.is_running:
                self._drop(key, kept)
        return self._n_reserved + KEPT_BYTES <= self._most

    @property
    def _n_reserved(self) -> int:
        return sum(kept.n_reserved for kept in self._kept.values())

    def _ended(self, key: Key, kept: KeptStream) -> None:
        kept.completed_at = int(time.time())
        drop = partial(self._drop, key, kept)
        asyncio.get_running_loop().call_later(KEPT_SECONDS, drop)

    def _drop(self, key: Key, kept: KeptStream) -> None:
        if self._kept.get(key) is kept:
            del self._kept[key]


def released(response: Response) -> ASGIApp:
    """A response while which the request's body is not kept: the engine has what it needs."""

    async def send_it(scope: Scope, receive: Receive, send: Send) -> None:
        if LEASE in scope:
            scope[LEASE].give_back()
        await response(scope, receive, send)

    return send_it


async def _bodies(run: Run, start: int) -> AsyncIterator[bytes]:
    """Whoever reads so slowly that what follows is lost is told, and left."""
    try:
        async for body in run.bytes_from(start):
            yield body
    except LostError:
        yield run.error(invalid(LOST))
