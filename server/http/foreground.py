"""Who waits for an answer: what nobody waits for runs while there is no one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Foreground:
    """The streams of answers that somebody waits for. Used by the event loop alone."""

    def __init__(self) -> None:
        self.on_change: Callable[[bool], None] = lambda is_busy: None  # the first, after the last
        self._streams: set[object] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def is_busy(self) -> bool:
        return bool(self._streams)

    def enter(self, stream: object) -> None:
        self._streams.add(stream)
        if len(self._streams) == 1 and self._empty.is_set():
            self._empty.clear()
            self.on_change(True)

    def leave(self, stream: object) -> None:
        """It needs the engine no more; idempotent."""
        self._streams.discard(stream)
        if not self._streams and not self._empty.is_set():
            self._empty.set()
            self.on_change(False)

    async def wait_until_empty(self) -> None:
        while self.is_busy:  # others may have come since it was
            await self._empty.wait()
