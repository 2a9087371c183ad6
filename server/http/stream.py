"""The bridge from the engine's thread to the event loop.

Neither side waits for the other: the engine appends to a deque, the loop drains it. One
iterator of batches of events serves streaming and non-streaming answers.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from msgspec.structs import replace
from starlette.types import Receive

from gguf_serve.engine.request import (
    Delta,
    Event,
    Failed,
    Finished,
    PromptScored,
    Request,
    Sound,
    Timings,
    TokenScore,
)
from gguf_serve.server.account import Account
from gguf_serve.server.errors import ApiError, invalid
from gguf_serve.server.http.client import session
from gguf_serve.server.http.foreground import Foreground
from gguf_serve.server.http.traffic import Traffic, Watch

log = logging.getLogger(__name__)
DEFAULT_MAX_UNREAD = 8 * 2**20  # bytes of events, roughly
EVENT_BYTES, SCORE_BYTES = 200, 120  # of each, without their text
# To submit a request takes 0.1 milliseconds and 0.05 microseconds for each token.
TOKENS_OF_A_REQUEST = 2**11
TOKENS_AT_ONCE = 2**16  # then the loop has its turn
batches = itertools.count(1)  # numbers of HTTP requests, by which the engine lets them take turns


class Submits(Protocol):
    """What a stream needs of an engine."""

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Any: ...
    def cancel(self, ticket: Any) -> None: ...
    def end_reasoning(self, ticket: Any) -> None: ...


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

    Iterating yields lists of (index, event), everything that has arrived meanwhile. It ends
    after the last request's end, or at once when the client goes away.
    """

    def __init__(
        self,
        engine: Submits,
        inbox: Inbox,
        max_unread: int = DEFAULT_MAX_UNREAD,
        client: str = "",
        account: Account | None = None,
        isolates: bool = False,
        traffic: Traffic | None = None,
        foreground: Foreground | None = None,
    ) -> None:
        """``isolates``: clients share no cached prefixes. ``foreground``: it is one of those that
        somebody waits for."""
        self.engine, self._isolates = engine, isolates
        self._client, self._batch = client, next(batches)
        self._account = account
        self._foreground = foreground
        self._watch = None if traffic is None else Watch(traffic, client)
        self.max_unread = max_unread  # bytes of events that wait while it is blocked
        self.is_blocked = False  # something is being sent, and its client has not taken it yet
        self.on_overflow: Callable[[], None] = lambda: None
        self.gone = False  # the client has closed the connection
        # Called when all have ended; it may submit another, whose events follow.
        self.go_on: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._going_on: asyncio.Task[None] | None = None
        self._inbox = inbox
        self._tickets: dict[int, Any] = {}  # of the requests that have not ended
        self._n_submitted = 0
        self._pending: list[tuple[int, Event]] = []
        self._n_pending = 0  # bytes of them
        self._waiter: asyncio.Future[None] | None = None

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

    async def _submit(self, index: int, request: Request) -> None:
        """In a thread where it takes long: a grammar that is not compiled any more, or DRY, for
        which the vocabulary and the prompt are searched."""
        if self._foreground is not None:
            self._foreground.enter(self)
        salt = request.cache_salt
        if self._isolates:
            salt = f"{self._client} {salt}"
        request = replace(
            request, client=self._client, session=session.get(), batch=self._batch, cache_salt=salt
        )  # fmt: skip
        on_event = partial(self._inbox.put, self, index)
        if self._watch is not None:
            self._watch.submitted(index)
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
            self._leave_if_over()
        if self._account is not None:
            self._account.take(index, event)
        if self._watch is not None:
            self._watch.take(index, event)
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
        self.leave()

    def leave(self) -> None:
        """End without an answer: nobody wants it any more."""
        self.gone = True
        self.close()
        self._wake()
        if self._going_on is not None:
            self._going_on.cancel()

    def stop(self) -> None:
        """End what still runs as the engine does that closes, but now: it may be in a long step."""
        for ticket in self._submitted():
            self.engine.cancel(ticket)
        for index in list(self._tickets):
            self.deliver(index, Finished("cancelled", Timings()))
        if self._going_on is not None and self._going_on.cancel():
            self.deliver(self._n_submitted, Finished("cancelled", Timings()))

    def refuse(self, message: str) -> None:
        """End what still runs with an error that is its client's."""
        for ticket in self._submitted():
            self.engine.cancel(ticket)
        for index in list(self._tickets):
            self.deliver(index, Failed(message, by_request=True))

    @property
    def is_running(self) -> bool:
        """Whether a request of it has not ended."""
        return bool(self._tickets)

    def end_reasoning(self) -> None:
        for ticket in self._submitted():
            self.engine.end_reasoning(ticket)

    def close(self) -> None:
        """Cancel whatever still runs; its slots are free at the engine's next step."""
        for ticket in self._submitted():
            self.engine.cancel(ticket)
        self._tickets.clear()
        self._leave_if_over()

    def _leave_if_over(self) -> None:
        if self._foreground is not None and not self._tickets:
            self._foreground.leave(self)

    def _submitted(self) -> list[Any]:
        return [ticket for ticket in self._tickets.values() if ticket is not None]

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> list[tuple[int, Event]]:
        if not (self._pending or self._tickets or self.gone) and self.go_on is not None:
            await self._goes_on(self.go_on())
        if not self._pending and self._tickets and not self.gone:
            self._waiter = self._inbox.loop.create_future()
            await self._waiter
        if self.gone or not (self._pending or self._tickets):
            raise StopAsyncIteration
        batch, self._pending, self._n_pending = self._pending, [], 0
        return batch

    async def _goes_on(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for it, unless the client goes or the server stops meanwhile."""
        self._going_on = asyncio.create_task(work)
        try:
            await asyncio.wait({self._going_on})
        finally:
            self._going_on.cancel()
        if not self._going_on.cancelled():
            self._going_on.result()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def weight(event: Event) -> int:
    """About how many bytes of memory an event takes, and of an answer it becomes."""
    n_bytes = EVENT_BYTES
    if type(event) is Delta:
        n_bytes += len(event.text) + sum(map(score_weight, event.scores))
    elif type(event) is Sound:
        n_bytes += len(event.pcm)
    elif type(event) is PromptScored:
        n_bytes += sum(map(score_weight, event.scores))
    return n_bytes


def score_weight(score: TokenScore | None) -> int:
    return 0 if score is None else SCORE_BYTES * (1 + len(score.top))


def raise_if_ended_early(event: Event) -> None:
    """A fault, or an end that the client did not ask for, as the error it is told."""
    if type(event) is Failed:
        raise (
            invalid(event.message) if event.by_request else ApiError("server_error", event.message)
        )
    if type(event) is Finished and event.reason == "cancelled":
        raise ApiError("unavailable_error", "the server is shutting down")
