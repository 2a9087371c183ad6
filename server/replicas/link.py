"""A front's side of its channel to one host."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future
from typing import Any, Protocol

from gguf_serve.engine.errors import EngineStoppedError, RequestError
from gguf_serve.engine.request import Failed, Finished, Request
from gguf_serve.server.http.flight import Flight
from gguf_serve.server.replicas.channel import Channel, connected
from gguf_serve.server.replicas.messages import (
    Answer,
    Beat,
    Call,
    Cancel,
    Draining,
    EndReasoning,
    Heard,
    Hello,
    Method,
    State,
    Submit,
)
from gguf_serve.server.replicas.router import Place


class Owner(Protocol):
    """What hears of a link; in its thread, without a lock."""

    def link_is_up(self, link: Link, hello: Hello) -> None: ...
    def link_is_lost(self, link: Link, flights: list[Flight]) -> None: ...
    def has_ended(self, link: Link, flight: Flight, event: Finished | Failed) -> None:
        """The last event that the host has for a flight; it is not told to it yet."""
        ...


class Link:
    """Requests and calls to one host, by their numbers on the channel."""

    def __init__(self, id: str, address: tuple[str, int], key: bytes, owner: Owner) -> None:
        """Raises OSError if nobody with the key is there."""
        self.id = id
        self.state: State | None = None  # as of the last beat
        self.adapter_ids: dict[int, int] = {}  # there, by ids here (adapters.py)
        self.is_equipped = False  # with the adapters that it should have
        self.is_draining = self.is_lost = False
        self._n_others = 0  # requests of other fronts, as of the last beat
        self._owner = owner
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._flights: dict[int, Flight] = {}
        self._number_of: dict[Flight, int] = {}
        self._calls: dict[int, Future[Any]] = {}
        self._channel = Channel(
            connected(address, key), f"engine {id}", Beat, self._hear, self._lose
        )
        self.close = self._channel.close

    @property
    def takes_requests(self) -> bool:
        is_there = self.is_equipped and not self.is_draining and not self.is_lost
        return is_there and self.state is not None and not self.state.fault

    @property
    def n_flights(self) -> int:
        return len(self._flights)

    @property
    def place(self) -> Place:
        assert self.state is not None
        stats, n = self.state.stats, self._n_others + self.n_flights
        return Place(self.id, stats.n_slots, stats.page_size, stats.n_pages, n)

    def submit(self, flight: Flight, request: Request) -> bool:
        """Ask for a flight's rest; False: the link is lost."""
        with self._lock:
            if self.is_lost:
                return False
            number = next(self._numbers)
            self._flights[number], self._number_of[flight] = flight, number
        self._channel.post(Submit(number, request))
        return True

    def cancel(self, flight: Flight) -> None:
        if (number := self._number_of.get(flight)) is not None:
            self._channel.post(Cancel(number))

    def end_reasoning(self, flight: Flight) -> None:
        if (number := self._number_of.get(flight)) is not None:
            self._channel.post(EndReasoning(number))

    def call(self, method: Method, *arguments: Any) -> Future[Any]:
        """What an engine's method gives, or raises; EngineStoppedError if the link is lost."""
        result: Future[Any] = Future()
        with self._lock:
            if self.is_lost:
                result.set_exception(EngineStoppedError(f"the engine {self.id} is gone"))
                return result
            number = next(self._numbers)
            self._calls[number] = result
        self._channel.post(Call(number, method, arguments))
        return result

    def _hear(self, message: object) -> None:
        match message:
            case Heard(number, Finished() | Failed() as event):
                if (flight := self._take(number)) is not None:
                    self._owner.has_ended(self, flight, event)
            case Heard(number, event):
                if (flight := self._flights.get(number)) is not None:
                    flight.hear(event)
            case Answer(number):
                self._answer(message)
            case State():
                self._note(message)
            case Draining():
                self.is_draining = True
            case Hello():
                self._note(message.state)
                self._owner.link_is_up(self, message)

    def _note(self, state: State) -> None:
        """A beat may be old when it counts, by which time those of this front have ended."""
        self.state = state
        n = state.stats.n_processing + state.stats.n_deferred
        self._n_others = max(n - self.n_flights, 0)

    def _answer(self, answer: Answer) -> None:
        flight = self._take(answer.number)
        if flight is not None:
            is_its_own = isinstance(answer.error, RequestError)
            self._owner.has_ended(self, flight, Failed(str(answer.error), is_its_own))
            return
        with self._lock:
            result = self._calls.pop(answer.number, None)
        if result is None:
            return
        if answer.error is None:
            result.set_result(answer.value)
        else:
            result.set_exception(answer.error)

    def _take(self, number: int) -> Flight | None:
        with self._lock:
            flight = self._flights.pop(number, None)
            if flight is not None:
                del self._number_of[flight]
            return flight

    def _lose(self) -> None:
        with self._lock:
            self.is_lost = True
            flights, calls = list(self._flights.values()), list(self._calls.values())
            self._flights.clear()
            self._number_of.clear()
            self._calls.clear()
        for call in calls:
            call.set_exception(EngineStoppedError(f"the engine {self.id} is gone"))
        self._owner.link_is_lost(self, flights)
