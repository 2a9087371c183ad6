"""The engine as it is for requests that nobody waits for: they leave it while somebody does.

When an answer is asked for that somebody waits for, what runs here is cancelled at once, with what
it has written so far noted; it goes on from there, token for token the same, when nobody waits any
more. So it takes no slot, no memory and no part of a step from the others.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec.structs import replace

from gguf_serve.engine.errors import EngineError, RequestError
from gguf_serve.engine.option import INT32_MAX
from gguf_serve.engine.request import Event, Failed, Finished, Request
from gguf_serve.server.http.flight import Flight
from gguf_serve.server.http.foreground import Foreground
from gguf_serve.server.interface import Engine


class Yielding:
    """What an EventStream needs of an engine. Events come from the engine's thread, submissions
    from any."""

    def __init__(self, engine: Callable[[], Engine], foreground: Foreground) -> None:
        """``engine``: the one that is loaded now."""
        self._engine = engine
        self._lock = threading.RLock()
        self._turns: dict[Flight, int] = {}  # of those that have not ended: how often they went on
        self._tickets: dict[Flight, Any] = {}  # of those that run
        self._sending: set[Flight] = set()  # on their way to the engine
        self._is_away = foreground.is_busy
        foreground.on_change = self._change

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Flight:
        """As the engine's own, which refuses what it cannot serve."""
        if request.sampling.seed < 0:  # it must be able to draw the same again
            seed = secrets.randbits(31)
            request = replace(request, sampling=dataclasses.replace(request.sampling, seed=seed))
        can_resume = request.has_text and self._engine().info.denoising is None
        request = replace(request, marks=can_resume, priority=INT32_MAX)
        flight = Flight(request, on_event, can_resume=can_resume)
        with self._lock:
            self._turns[flight] = 0
            self._sending.add(flight)
        self._send(flight)
        return flight

    def cancel(self, ticket: Flight) -> None:
        with self._lock:
            if ticket in self._tickets:
                self._engine().cancel(self._tickets[ticket])
            elif self._turns.pop(ticket, None) is not None:
                ticket.tell(ticket.cancelled())

    def end_reasoning(self, ticket: Flight) -> None:
        with self._lock:
            if ticket in self._tickets:
                self._engine().end_reasoning(self._tickets[ticket])

    def _change(self, is_busy: bool) -> None:
        """Somebody waits for an answer now, or nobody any more; called in the event loop."""
        with self._lock:
            self._is_away = is_busy
            if is_busy:
                for flight in list(self._tickets):
                    self._take_back(flight)
            elif self._turns:  # to submit what has a grammar may take long
                asyncio.get_running_loop().run_in_executor(None, self._go_on)

    def _take_back(self, flight: Flight) -> None:
        ticket = self._tickets.pop(flight, None)
        if ticket is not None:
            self._turns[flight] += 1  # nothing more is heard of this turn
            flight.lose()
            self._engine().cancel(ticket)

    def _go_on(self) -> None:
        """All that wait, in a thread."""
        while True:
            with self._lock:
                held = self._tickets.keys() | self._sending
                flight = next((one for one in self._turns if one not in held), None)
                if flight is None or self._is_away:
                    return
                self._sending.add(flight)
            try:
                self._send(flight)
            except EngineError as error:
                flight.tell(Failed(str(error), by_request=isinstance(error, RequestError)))

    def _send(self, flight: Flight) -> None:
        """Submit one that is among ``_sending``. Not under the lock: to compile a grammar may take
        seconds, in which the engine must not wait for it."""
        turn = self._turns.get(flight, -1)
        try:
            ticket = self._engine().submit(flight.rest(), partial(self._hear, flight, turn))
        except EngineError:
            with self._lock:
                self._sending.discard(flight)
                self._turns.pop(flight, None)
            raise
        with self._lock:
            self._sending.discard(flight)
            if self._turns.get(flight) != turn:  # it has ended, or nobody wants it any more
                self._engine().cancel(ticket)
                return
            self._tickets[flight] = ticket
            if self._is_away:
                self._take_back(flight)

    def _hear(self, flight: Flight, turn: int, event: Event) -> None:
        with self._lock:
            if self._turns.get(flight) != turn:
                return
            if isinstance(event, Finished | Failed):
                del self._turns[flight]
                self._tickets.pop(flight, None)
            flight.hear(event)
