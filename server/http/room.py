"""Memory for what clients send: so many bytes at the same time, and who finds none waits."""

from __future__ import annotations

import asyncio
from collections import deque

from starlette.types import ASGIApp, Receive, Scope, Send

LEASE = "gguf_serve.lease"  # in a request's scope: its Lease of memory for its body


class Room:
    """Used in the event loop only. Whoever comes first is served first, so that nobody starves."""

    def __init__(self, size: int) -> None:
        self.size = size  # bytes
        self.free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, n_bytes: int) -> None:
        """Wait until there is room, at most all of it, and have it; cancelling is safe."""
        if not self._waiting and n_bytes <= self.free:
            self.free -= n_bytes
            return
        served: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (n_bytes, served)
        self._waiting.append(entry)
        try:
            await served
        except asyncio.CancelledError:
            if served.done() and not served.cancelled():
                self.give(n_bytes)
            else:
                self._waiting.remove(entry)
                self._serve()
            raise

    def give(self, n_bytes: int) -> None:
        self.free += n_bytes
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.free:
            n_bytes, served = self._waiting.popleft()
            self.free -= n_bytes
            served.set_result(None)


class Lease:
    """What one request has of a room; all of it is given back at once."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.n_bytes = 0

    async def take(self, n_bytes: int, seconds: float) -> None:
        """TimeoutError if there is no room within so many seconds."""
        n_bytes = min(n_bytes, self.room.size)
        async with asyncio.timeout(seconds):
            await self.room.take(n_bytes)
        self.n_bytes += n_bytes

    def give_back(self) -> None:
        n_bytes, self.n_bytes = self.n_bytes, 0
        if n_bytes:
            self.room.give(n_bytes)


class Leases:
    """Middleware: a request gives back what it has of a room in the end, whatever that is."""

    def __init__(self, app: ASGIApp, room: Room) -> None:
        self.app = app
        self.room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        lease = Lease(self.room)
        scope[LEASE] = lease
        try:
            return await self.app(scope, receive, send)
        finally:
            lease.give_back()
