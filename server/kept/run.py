"""Answers that are written whether or not somebody listens, and can be listened to again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable

from gguf_serve.server.errors import ApiError
from gguf_serve.server.http.reply import Translator
from gguf_serve.server.http.stream import EventStream, raise_if_ended_early

log = logging.getLogger(__name__)


class LostError(Exception):
    """What is asked for was dropped, for there was no more room."""


class Run:
    """One streamed answer: what was sent of it so far, and whether more comes."""

    def __init__(
        self,
        stream: EventStream,
        dialect: Translator,
        *,
        on_end: Callable[[], None] = lambda: None,
        on_cancel: Callable[[], Iterable[object]] = lambda: (),
        on_chunk: Callable[[object], None] = lambda chunk: None,
        most: int | None = None,
    ) -> None:
        """Begin, in a task. ``on_end`` is called when nothing more will come, ``on_chunk`` with
        each object that is sent; ``on_cancel`` says what ends one that was cancelled. ``most``:
        bytes that are kept, of which the first go; None: all."""
        self.stream = stream
        self.is_running = True
        self.n_bytes = 0  # that have come
        self.n_lost = 0  # of them, which were dropped
        self._dialect = dialect
        self._on_end, self._on_cancel, self._on_chunk = on_end, on_cancel, on_chunk
        self._most = most
        self._pieces: list[bytes] = []  # each an object, or what follows the last
        self._n_dropped = 0  # pieces
        self._news = asyncio.Event()
        self._is_cancelled = False
        self._refusal: ApiError | None = None
        self._task = asyncio.create_task(self._run())

    async def begun(self) -> None:
        """Wait for its first bytes; ApiError where it fails before any."""
        while not self.n_bytes and self.is_running:
            await self._news.wait()
        if self._refusal is not None:
            raise self._refusal

    def cancel(self) -> None:
        self._is_cancelled = True
        self.stream.leave()

    async def end(self) -> None:
        await asyncio.shield(self._task)

    def error(self, error: ApiError) -> bytes:
        """What ends the stream for who cannot have the rest."""
        return b"".join(map(self._dialect.framing.frame, self._dialect.failed(error)))

    async def objects(self, first: int = 0) -> AsyncIterator[bytes]:
        """From the object with that number on, until the last has come. LostError if it is not
        there any more."""
        while True:
            news = self._news
            if first < self._n_dropped:
                raise LostError
            found = self._pieces[first - self._n_dropped :]
            if found:
                first += len(found)
                yield b"".join(found)
            elif not self.is_running:
                return
            else:
                await news.wait()

    async def bytes_from(self, start: int = 0) -> AsyncIterator[bytes]:
        """From that byte on, as ``objects``."""
        number, at = self._n_dropped, self.n_lost
        for piece in self._pieces:
            if at + len(piece) > start:
                break
            number, at = number + 1, at + len(piece)
        if start < self.n_lost:
            raise LostError
        skipped = start - at
        async for body in self.objects(number):
            part = body[skipped:]
            skipped = max(skipped - len(body), 0)
            if part:
                yield part

    async def _run(self) -> None:
        try:
            async for batch in self.stream:
                for index, event in batch:
                    raise_if_ended_early(event)
                    self._add(self._dialect.chunks(index, event))
                self._tell()
            self._add(self._on_cancel() if self._is_cancelled else self._dialect.last_chunks())
            if not self._is_cancelled:
                self._append(self._dialect.framing.done)
        except Exception as error:
            if not isinstance(error, ApiError):
                log.exception("an answer that is kept has failed")
                error = ApiError("server_error", f"{type(error).__name__}: {error}")
            if not self.n_bytes:
                self._refusal = error
            self._add(self._dialect.failed(error))
        finally:
            self.stream.close()
            self.is_running = False
            self._on_end()
            self._tell()

    def _add(self, chunks: Iterable[object]) -> None:
        for chunk in chunks:
            self._on_chunk(chunk)
            self._append(self._dialect.framing.frame(chunk))

    def _append(self, piece: bytes) -> None:
        if piece:
            self._pieces.append(piece)
            self.n_bytes += len(piece)
        while self._most is not None and self.n_bytes - self.n_lost > self._most:
            self.n_lost += len(self._pieces.pop(0))
            self._n_dropped += 1

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
