"""An engine for servers in other processes: the side that has the weights."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, get_args

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.request import Event, Failed, Finished, Request
from gguf_serve.server.interface import Engine
from gguf_serve.server.replicas.channel import Channel, accepted
from gguf_serve.server.replicas.messages import (
    Answer,
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

log = logging.getLogger(__name__)
THREADS = 4  # that submit requests, of which some wait for a grammar
OF_ADAPTERS = ("load_adapter", "unload_adapter")


class Host:
    """Serves an engine to every front that has the key."""

    def __init__(self, engine: Engine, address: tuple[str, int], key: bytes) -> None:
        """Listens at ``address``; its port may be 0."""
        self.engine = engine
        self._adapters = tuple(engine.adapters())
        self._key = key
        self._listener = socket.create_server(address)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.work = ThreadPoolExecutor(THREADS, "host")
        self.adapter_work = ThreadPoolExecutor(1, "host adapters")  # one after the other
        self._fronts: set[Front] = set()
        self._is_draining = self._is_closed = False
        threading.Thread(target=self._accept, name="host", daemon=True).start()

    @property
    def n_requests(self) -> int:
        """That are being served."""
        return sum(front.n_requests for front in list(self._fronts))

    def state(self) -> State:
        return State(self.engine.stats(), self.engine.fault)

    def drain(self) -> None:
        """Have the fronts send nothing new; what is served goes on."""
        self._is_draining = True
        for front in list(self._fronts):
            front.post(Draining())

    def close(self) -> None:
        """Leave the fronts, which go on elsewhere with what is served here."""
        self._is_closed = True
        self._listener.close()
        for front in list(self._fronts):
            front.close()
        for pool in (self.work, self.adapter_work):
            pool.shutdown(wait=False, cancel_futures=True)

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                prove = accepted(self._listener, self._key)
            except OSError:
                if not self._is_closed:
                    log.exception("the host cannot accept connections any more")
                return
            threading.Thread(target=self._greet, args=(prove,), daemon=True).start()

    def _greet(self, prove: Callable[[], Any]) -> None:
        try:
            connection = prove()
        except OSError as error:
            log.warning("a connection was refused: %s", error)
            return
        front = Front(self, connection)
        self._fronts.add(front)
        engine = self.engine
        info: Any = engine.info
        front.post(Hello(info, engine.n_ctx, engine.n_slots, self._adapters, self.state()))
        if self._is_draining:
            front.post(Draining())

    def forget(self, front: Front) -> None:
        self._fronts.discard(front)


class Front:
    """One front's requests, and the LoRA adapters that it has loaded, which go with it. Messages
    are heard in its channel's thread."""

    def __init__(self, host: Host, connection: Any) -> None:
        self._host = host
        self._lock = threading.Lock()
        self._tickets: dict[int, Any] = {}  # None: on its way to the engine
        self._adapters: set[int] = set()  # of the engine's; the thread for adapters has it
        self._channel = Channel(connection, "front", host.state, self._hear, self._lose)
        self.post, self.close = self._channel.post, self._channel.close

    @property
    def n_requests(self) -> int:
        return len(self._tickets)

    def _hear(self, message: object) -> None:
        match message:
            case Submit(number, request):
                with self._lock:
                    self._tickets[number] = None
                self._host.work.submit(self._submit, number, request)
            case Cancel(number):
                with self._lock:
                    ticket = self._tickets.pop(number, None)
                if ticket is not None:
                    self._host.engine.cancel(ticket)
            case EndReasoning(number):
                with self._lock:
                    ticket = self._tickets.get(number)
                if ticket is not None:
                    self._host.engine.end_reasoning(ticket)
            case Call(_, method) if method in OF_ADAPTERS:
                self._host.adapter_work.submit(self._call, message)
            case Call():
                self._host.work.submit(self._call, message)

    def _submit(self, number: int, request: Request) -> None:
        try:
            ticket = self._host.engine.submit(request, partial(self._on_event, number))
        except Exception as error:
            if not isinstance(error, EngineError):
                log.exception("a request cannot be submitted")
                error = EngineError(f"{type(error).__name__}: {error}")
            with self._lock:
                self._tickets.pop(number, None)
            self.post(Answer(number, error=error))
            return
        with self._lock:
            is_wanted = number in self._tickets
            if is_wanted:
                self._tickets[number] = ticket
        if not is_wanted:  # cancelled, or ended, meanwhile
            self._host.engine.cancel(ticket)

    def _on_event(self, number: int, event: Event) -> None:
        """In the engine's thread."""
        if isinstance(event, Finished | Failed):
            with self._lock:
                self._tickets.pop(number, None)
        self.post(Heard(number, event))

    def _call(self, call: Call) -> None:
        assert call.method in get_args(Method)
        try:
            value = getattr(self._host.engine, call.method)(*call.arguments)
            if isinstance(value, Future):
                value = value.result()
        except Exception as error:
            self.post(Answer(call.number, error=error))
            return
        if call.method == "load_adapter":
            self._adapters.add(value.id)
        elif call.method == "unload_adapter":
            self._adapters.discard(*call.arguments)
        self.post(Answer(call.number, value))

    def _unload_adapters(self) -> None:
        for id in self._adapters:
            try:
                self._host.engine.unload_adapter(id)
            except EngineError as error:
                log.warning("the LoRA adapter %d of a front that is gone stays: %s", id, error)

    def _lose(self) -> None:
        """Nobody hears the rest."""
        self._host.forget(self)
        with self._lock:
            tickets, self._tickets = self._tickets, {}
        for ticket in tickets.values():
            if ticket is not None:
                self._host.engine.cancel(ticket)
        with suppress(RuntimeError):  # the host is closed: its engine ends
            self._host.adapter_work.submit(self._unload_adapters)
