"""Responses that run whether or not somebody listens, and whose streams can be taken up again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from gguf_serve.server.dialects.responses.translator import Responses
from gguf_serve.server.errors import ApiError
from gguf_serve.server.http.framing import NAMED_SSE
from gguf_serve.server.http.stream import EventStream, raise_if_ended_early
from gguf_serve.server.requests.service import Service

log = logging.getLogger(__name__)


class Run:
    """One response: its events so far, as they are sent, and how it stands."""

    def __init__(
        self, service: Service, stream: EventStream, dialect: Responses, on_end: Callable[[], None]
    ) -> None:
        """Begin, in a task; ``on_end`` is called when nothing more will come."""
        self.stream = stream
        self.is_running = True
        self.n_bytes = 0  # of the events
        self.response = dialect.state("queued")
        self._service = service
        self._dialect = dialect
        self._on_end = on_end
        self._events: list[bytes] = []
        self._news = asyncio.Event()
        self._is_cancelled = False
        service.n_in_background += 1
        self._task = asyncio.create_task(self._run())

    def cancel(self) -> None:
        self._is_cancelled = True
        self.stream.leave()

    async def end(self) -> None:
        await asyncio.shield(self._task)

    async def events(self, first: int = 0) -> AsyncIterator[bytes]:
        """From the event with that number on, until the last has come."""
        while True:
            news = self._news
            if len(self._events) > first:
                found, first = self._events[first:], len(self._events)
                yield b"".join(found)
            elif not self.is_running:
                return
            else:
                await news.wait()

    async def _run(self) -> None:
        try:
            async for batch in self.stream:
                for index, event in batch:
                    raise_if_ended_early(event)
                    for made in self._dialect.chunks(index, event):
                        self._add(made)
                self._tell()
            cancelled = self._is_cancelled
            last = [self._dialect.cancelled()] if cancelled else self._dialect.last_chunks()
            for made in last:
                self._add(made)
        except Exception as error:
            if not isinstance(error, ApiError):
                log.exception("a response in the background has failed")
                error = ApiError("server_error", f"{type(error).__name__}: {error}")
            for made in self._dialect.failed(error):
                self._add(made)
        finally:
            self.stream.close()
            self.is_running = False
            self._service.n_in_background -= 1
            self._on_end()
            self._tell()

    def _add(self, event: Any) -> None:
        self.response = event.get("response", self.response)
        self._events.append(NAMED_SSE.frame(event))
        self.n_bytes += len(self._events[-1])

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
