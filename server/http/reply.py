"""The answer to a request that generates: a stream of server-sent events, or one JSON object."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Protocol

import anyio
from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gguf_serve.engine.request import Delta, Event, PromptScored
from gguf_serve.server.account import note_error
from gguf_serve.server.errors import ApiError, invalid, json_response
from gguf_serve.server.http.connections import ABORT
from gguf_serve.server.http.framing import Framing
from gguf_serve.server.http.room import LEASE
from gguf_serve.server.http.stream import EventStream, raise_if_ended_early

LEAST_PING_INTERVAL = 0.1  # seconds; a request may name one, and the loop must not spin for it
FAREWELL = 2.0  # seconds, when the server stops, in which a stream may say so
MAX_SCORES = 2**18  # log-probabilities of an answer that is sent as a whole: 25 MB of JSON
SCORED_AT_ONCE = 256  # tokens whose scores are written without leaving the loop

Batch = list[tuple[int, Event]]

# On import it wraps uvicorn's handler of signals, to be told that the server stops. This is its own
# switch against that: launch.Server handles signals, and says so.
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]


class Streamed(Protocol):
    """Makes the objects of one API of the events of a stream."""

    framing: Framing

    def chunks(self, index: int, event: Event) -> Iterable[object]:
        """What a streaming client is sent for an event; none for most."""
        ...

    def last_chunks(self) -> Iterable[object]:
        """What follows when every request has ended."""
        ...

    def failed(self, error: ApiError) -> Iterable[object]:
        """What ends a stream that has begun and then fails; with nothing to say the connection is
        cut, so that what has been sent is not taken for all."""
        ...


class Translator(Streamed, Protocol):
    """The same of answers that may be sent as a whole."""

    def take(self, index: int, event: Event) -> None: ...

    def whole(self) -> object:
        """What is sent as JSON, or a response of another kind."""
        ...


class StreamedReply:
    """The ASGI response made of a stream of events: a body that is sent as they come."""

    def __init__(
        self, stream: EventStream, dialect: Streamed, timeout: float, ping_interval: float
    ) -> None:
        self.stream = stream
        self.dialect = dialect
        self.timeout = timeout  # seconds for a client that does not read
        self.ping_interval = ping_interval  # seconds; 0 or less: no pings
        self._scored = False  # scores of a prompt have come that are not sent yet
        self._cut: Callable[[], None] = lambda: None  # closes the connection at once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._cut = self.stream.on_overflow = scope.get("extensions", {}).get(ABORT, lambda: None)
        if LEASE in scope:  # the engine has what it needs of the body
            scope[LEASE].give_back()
        watch = asyncio.create_task(self.stream.watch(receive))
        try:
            response = await self._response()
            watch.cancel()
            if response is not None:
                await response(scope, receive, send)
        except OSError:  # the connection broke while something was being sent, or it took too long
            pass
        finally:
            watch.cancel()
            self.stream.close()

    async def _response(self) -> Response | None:
        """The answer, once a request has started: errors before that go out as plain HTTP errors,
        and a ping would commit us to status 200. None if the client has gone."""
        first = await anext(self.stream, None)
        if first is None:
            return None
        raise_if_ended_early(first[0][1])
        return self._streamed(first)

    def _streamed(self, first: Batch) -> Response:
        framing = self.dialect.framing
        bodies = self._bodies(first)
        return event_source(bodies, framing, self.ping_interval, self.timeout, self.stream.stop)

    async def _bodies(self, batch: Batch | None) -> AsyncIterator[bytes]:
        """The bytes of each batch of events, from the first one on, as they come.

        Bytes are sent as they are. Were each event an object that sse-starlette encodes and sends
        by itself, eight streams would cost four times as much where events come in batches.
        """
        while batch is not None:
            if self._is_long(batch):
                body, error = await asyncio.to_thread(self._translate, batch)
            else:
                body, error = self._translate(batch)
            if error is not None:
                note_error(error.message)
                last = self._framed(self.dialect.failed(error))
                yield body + last
                if not last:
                    self._cut()
                return
            if body:
                self.stream.is_blocked = True
                yield body
                self.stream.is_blocked = False
            batch = await anext(self.stream, None)
        if not self.stream.gone:
            yield self._framed(self.dialect.last_chunks()) + self.dialect.framing.done

    def _is_long(self, batch: Batch) -> bool:
        """Whether to translate a batch takes so long that the loop should go on meanwhile: the
        scores of a prompt are sent with the first text that follows it."""
        if self._scored:
            self._scored = False
            return True
        self._scored = any(
            type(event) is PromptScored and len(event.scores) > SCORED_AT_ONCE for _, event in batch
        )
        return self._scored

    def _translate(self, batch: Batch) -> tuple[bytes, ApiError | None]:
        """The bytes of a batch, up to the event that ends the stream with an error."""
        frame = self.dialect.framing.frame
        parts: list[bytes] = []
        for index, event in batch:
            try:
                raise_if_ended_early(event)
            except ApiError as error:
                return b"".join(parts), error
            parts.extend(map(frame, self.dialect.chunks(index, event)))
        return b"".join(parts), None

    def _framed(self, chunks: Iterable[object]) -> bytes:
        return b"".join(map(self.dialect.framing.frame, chunks))


class Reply(StreamedReply):
    """A streamed body, or one JSON object."""

    dialect: Translator

    def __init__(
        self,
        stream: EventStream,
        dialect: Translator,
        streaming: bool,
        timeout: float,
        ping_interval: float,
    ) -> None:
        super().__init__(stream, dialect, timeout, ping_interval)
        self.streaming = streaming

    async def _response(self) -> Response | None:
        return await (super()._response() if self.streaming else self._take_all())

    async def _take_all(self) -> Response | None:
        """The whole answer; None if the client has gone."""
        n_scores = 0
        async for batch in self.stream:
            for index, event in batch:
                raise_if_ended_early(event)
                n_scores += generated_scores(event)
                if n_scores > MAX_SCORES:
                    raise invalid(
                        f"The answer would have more than {MAX_SCORES} log-probabilities: ask for "
                        "less of n_probs or top_logprobs, for fewer tokens, or for a stream"
                    )
                self.dialect.take(index, event)
        return None if self.stream.gone else await asyncio.to_thread(self._whole)

    def _whole(self) -> Response:
        """In a thread: with the scores of a long prompt it takes a second."""
        whole = self.dialect.whole()
        return whole if isinstance(whole, Response) else json_response(whole)


def event_source(
    bodies: AsyncIterator[bytes],
    framing: Framing,
    ping_interval: float,
    timeout: float,
    on_stop: Callable[[], None],
) -> Response:
    """The response that streams ``bodies``, with pings between them; ``on_stop`` is called when the
    server stops, and has them end soon."""
    stops = anyio.Event()

    async def stop() -> None:
        await stops.wait()
        on_stop()

    interval = max(ping_interval, LEAST_PING_INTERVAL) if ping_interval > 0 else 0.0
    response = EventSourceResponse(
        bodies,
        headers={"cache-control": "no-cache"},
        media_type=framing.media_type,
        ping=interval if framing.ping else 0,
        ping_message_factory=lambda: framing.ping,  # type: ignore[arg-type, return-value]
        data_sender_callable=stop,
        send_timeout=timeout,
        shutdown_event=stops,
        shutdown_grace_period=FAREWELL,
    )
    del response.headers["connection"]  # uvicorn writes it, as the client has asked
    return response


def generated_scores(event: Event) -> int:
    """How many log-probabilities an event has of generated tokens."""
    if type(event) is not Delta:
        return 0
    return sum(1 + len(score.top) for score in event.scores)
