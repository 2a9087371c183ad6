"""The bridge from the engine's thread to the event loop, and what goes out as SSE.

Neither side waits for the other: the engine appends to a deque, the loop drains it. One
iterator of batches of events serves streaming and non-streaming answers.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gguf_serve.engine.request import (
    Delta,
    Event,
    Failed,
    Finished,
    PromptScored,
    Request,
    TokenScore,
)
from gguf_serve.server.errors import ApiError, invalid, json_response
from gguf_serve.server.http.connections import ABORT
from gguf_serve.server.http.framing import Framing
from gguf_serve.server.http.room import LEASE
from gguf_serve.server.interface import Engine

log = logging.getLogger(__name__)
DEFAULT_MAX_UNREAD = 8 * 2**20  # bytes of events, roughly
EVENT_BYTES, SCORE_BYTES = 200, 120  # of each, without their text
LEAST_PING_INTERVAL = 0.1  # seconds; a request may name one, and the loop must not spin for it
MAX_SCORES = 2**18  # log-probabilities of an answer that is sent as a whole: 25 MB of JSON
SCORED_AT_ONCE = 256  # tokens whose scores are written without leaving the loop
# To submit a request takes 0.1 milliseconds and 0.05 microseconds for each token.
TOKENS_OF_A_REQUEST = 2**11
TOKENS_AT_ONCE = 2**16  # then the loop has its turn
batches = itertools.count(1)  # numbers of HTTP requests, by which the engine lets them take turns


class Inbox:
    """Events of all requests on their way to the loop; one wake-up carries many."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._pending: deque[tuple[EventStream, int, Event]] = deque()
        self._waking = False

    def put(self, stream: EventStream, index: int, event: Event) -> None:
        """Called in the engine's thread."""
        self._pending.append((stream, index, event))
        if not self._waking:
            self._waking = True
            with suppress(RuntimeError):  # the loop is closed: nobody is left to read
                self.loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._waking = False  # before taking: what is put from now on wakes the loop anew
        while self._pending:
            stream, index, event = self._pending.popleft()
            stream.deliver(index, event)


class EventStream:
    """The events of the engine requests that answer one HTTP request, each with an index.

    Iterating yields lists of (index, event), everything that has arrived meanwhile; an
    empty list means ``ping_interval`` seconds of silence. It ends after the last request's
    end, or at once when the client goes away.
    """

    def __init__(
        self,
        engine: Engine,
        inbox: Inbox,
        ping_interval: float = 0.0,
        max_unread: int = DEFAULT_MAX_UNREAD,
        client: str = "",
    ) -> None:
        self.engine = engine
        self._client, self._batch = client, next(batches)
        self.max_unread = max_unread  # bytes of events that wait while it is blocked
        self.is_blocked = False  # something is being sent, and its client has not taken it yet
        self.on_overflow: Callable[[], None] = lambda: None
        self.gone = False  # the client has closed the connection
        self._inbox = inbox
        self._tickets: dict[int, Any] = {}  # of the requests that have not ended
        self._n_submitted = 0
        self._pending: list[tuple[int, Event]] = []
        self._n_pending = 0  # bytes of them
        self._waiter: asyncio.Future[None] | None = None
        self._ping_interval = max(ping_interval, LEAST_PING_INTERVAL) if ping_interval > 0 else 0.0
        self._last_batch = inbox.loop.time()
        self._ping_timer: asyncio.TimerHandle | None = None

    async def submit(self, requests: Iterable[Request]) -> None:
        """Hand every request to the engine, or none: a refusal cancels those before it.

        The loop goes on between them, since each takes a moment.
        """
        n_tokens = 0
        try:
            for request in requests:
                if self.gone:
                    return
                index = self._n_submitted
                n_tokens += TOKENS_OF_A_REQUEST + len(request.prompt)
                if n_tokens > TOKENS_AT_ONCE:
                    n_tokens = 0
                    await asyncio.sleep(0)
                self._n_submitted += 1
                await self._submit(index, request)
        except Exception:
            self.close()
            raise
        if self._ping_interval > 0:
            self._ping_timer = self._inbox.loop.call_later(self._ping_interval, self._ping)

    async def _submit(self, index: int, request: Request) -> None:
        """In a thread where it takes long: a grammar that is not compiled any more, or DRY, for
        which the vocabulary and the prompt are searched."""
        request = replace(request, client=self._client, batch=self._batch)
        on_event = partial(self._inbox.put, self, index)
        if request.constraint is None and request.sampling.dry_multiplier == 0.0:
            self._tickets[index] = self.engine.submit(request, on_event)
            return
        self._tickets[index] = None  # it is on its way
        ticket = await asyncio.to_thread(self.engine.submit, request, on_event)
        if index in self._tickets:
            self._tickets[index] = ticket
        elif self.gone:
            self.engine.cancel(ticket)

    def deliver(self, index: int, event: Event) -> None:
        if type(event) is Finished or type(event) is Failed:
            self._tickets.pop(index, None)
        if self.gone:
            return
        self._pending.append((index, event))
        self._n_pending += weight(event)
        self._wake()
        if self.is_blocked and self._n_pending > self.max_unread:
            self._overflow()

    def _overflow(self) -> None:
        """The client reads more slowly than the model writes: give it up."""
        log.warning("cancelled a request whose client had left %d bytes unread", self._n_pending)
        self.gone = True
        self.close()
        self._pending.clear()
        self._wake()
        self.on_overflow()

    async def watch(self, receive: Receive) -> None:
        """End when the client closes the connection; a task beside what iterates."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self.close()
        self._wake()

    def end_reasoning(self) -> None:
        for ticket in self._submitted():
            self.engine.end_reasoning(ticket)

    def close(self) -> None:
        """Cancel whatever still runs; its slots are free at the engine's next step."""
        if self._ping_timer is not None:
            self._ping_timer.cancel()
            self._ping_timer = None
        for ticket in self._submitted():
            self.engine.cancel(ticket)
        self._tickets.clear()

    def _submitted(self) -> list[Any]:
        return [ticket for ticket in self._tickets.values() if ticket is not None]

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> list[tuple[int, Event]]:
        if not self._pending and self._tickets and not self.gone:
            self._waiter = self._inbox.loop.create_future()
            await self._waiter
        if self.gone or not (self._pending or self._tickets):
            raise StopAsyncIteration
        batch, self._pending, self._n_pending = self._pending, [], 0
        self._last_batch = self._inbox.loop.time()
        return batch

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _ping(self) -> None:
        """Re-armed for the silence that is left, so that an event costs no timer."""
        silent = self._inbox.loop.time() - self._last_batch
        left = self._ping_interval - silent
        if left <= 0:
            self._wake()
            left = self._ping_interval
        self._ping_timer = self._inbox.loop.call_later(left, self._ping)


def weight(event: Event) -> int:
    """About how many bytes of memory an event takes, and of an answer it becomes."""
    n_bytes = EVENT_BYTES
    if type(event) is Delta:
        n_bytes += len(event.text) + sum(map(score_weight, event.scores))
    elif type(event) is PromptScored:
        n_bytes += sum(map(score_weight, event.scores))
    return n_bytes


def score_weight(score: TokenScore | None) -> int:
    return 0 if score is None else SCORE_BYTES * (1 + len(score.top))


class Dialect(Protocol):
    """Translates the events of a stream into the objects of one API."""

    framing: Framing

    def chunks(self, index: int, event: Event) -> Iterable[object]:
        """What a streaming client is sent for an event; none for most."""
        ...

    def last_chunks(self) -> Iterable[object]:
        """What follows when every request has ended."""
        ...

    def take(self, index: int, event: Event) -> None:
        """An event of an answer that is sent as a whole."""
        ...

    def whole(self) -> object:
        """What is sent as JSON, or a response of another kind."""
        ...

    def failed(self, error: ApiError) -> Iterable[object]:
        """What ends a stream that has begun and then fails."""
        ...


class Reply:
    """The ASGI response made of a stream of events: a streamed body or one JSON object."""

    def __init__(
        self, stream: EventStream, dialect: Dialect, streaming: bool, timeout: float
    ) -> None:
        self.stream = stream
        self.dialect = dialect
        self.streaming = streaming
        self.timeout = timeout  # seconds for a client that does not read
        self._scored = False  # scores of a prompt have come that are not sent yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self.stream.watch(receive))
        self.stream.on_overflow = scope.get("extensions", {}).get(ABORT, lambda: None)
        if LEASE in scope:  # the engine has what it needs of the body
            scope[LEASE].give_back()
        try:
            if self.streaming:
                await self._send_events(send)
            else:
                await self._send_whole(scope, receive, send)
        except OSError:  # the connection broke while something was being sent
            pass
        finally:
            watch.cancel()
            self.stream.close()

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
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
        if not self.stream.gone:
            response = await asyncio.to_thread(self._whole)
            await response(scope, receive, send)

    def _whole(self) -> Response:
        """In a thread: with the scores of a long prompt it takes a second."""
        whole = self.dialect.whole()
        return whole if isinstance(whole, Response) else json_response(whole)

    async def _send_events(self, send: Send) -> None:
        """Errors before the first request has started go out as plain HTTP errors."""
        framing = self.dialect.framing
        started = False
        async for batch in self.stream:
            if not started:
                if not batch:  # still queued: a ping would commit us to status 200
                    continue
                raise_if_ended_early(batch[0][1])
                headers = framing.headers()
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                started = True
            if not batch:
                body, error = framing.ping, None
            elif self._is_long(batch):
                body, error = await asyncio.to_thread(self._translate, batch)
            else:
                body, error = self._translate(batch)
            if error is not None:
                return await end_body(send, body + self._framed(self.dialect.failed(error)))
            if body:
                self.stream.is_blocked = True
                async with asyncio.timeout(self.timeout):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                self.stream.is_blocked = False
        if not self.stream.gone:
            await end_body(send, self._framed(self.dialect.last_chunks()) + framing.done)
        return None

    def _is_long(self, batch: list[tuple[int, Event]]) -> bool:
        """Whether to translate a batch takes so long that the loop should go on meanwhile: the
        scores of a prompt are sent with the first text that follows it."""
        if self._scored:
            self._scored = False
            return True
        self._scored = any(
            type(event) is PromptScored and len(event.scores) > SCORED_AT_ONCE for _, event in batch
        )
        return self._scored

    def _translate(self, batch: list[tuple[int, Event]]) -> tuple[bytes, ApiError | None]:
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


async def end_body(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": False})


def generated_scores(event: Event) -> int:
    """How many log-probabilities an event has of generated tokens."""
    if type(event) is not Delta:
        return 0
    return sum(1 + len(score.top) for score in event.scores)


def raise_if_ended_early(event: Event) -> None:
    """A fault, or an end that the client did not ask for, as the error it is told."""
    if type(event) is Failed:
        raise (
            invalid(event.message) if event.by_request else ApiError("server_error", event.message)
        )
    if type(event) is Finished and event.reason == "cancelled":
        raise ApiError("unavailable_error", "the server is shutting down")
