"""A front and hosts in one process, without Ray."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.loading.texts import Texts
from gguf_serve.engine.request import Delta, Event, Request
from gguf_serve.server.replicas.host import Host
from gguf_serve.server.replicas.remote_engine import RemoteEngine

KEY = b"of the tests"


class Brake:
    """An engine that stops after so many pieces of text until it may go on: whatever is done to it
    until then is done in the middle of its texts."""

    def __init__(self, engine: Engine, n: int, goes_on: threading.Event) -> None:
        self._engine, self._n, self._goes_on = engine, n, goes_on
        self._numbers = itertools.count(1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> int:
        def hear(event: Event) -> None:
            on_event(event)
            if isinstance(event, Delta) and next(self._numbers) >= self._n:
                self._goes_on.wait(20)

        return self._engine.submit(request, hear)


class Replicas:
    """Hosts by their names, and a front of them all."""

    def __init__(self, engines: Sequence[Engine], patience: float = 20.0) -> None:
        self.hosts = {f"host {i}": Host(e, ("127.0.0.1", 0), KEY) for i, e in enumerate(engines)}
        self.front = self.new_front(engines[0], patience)

    def new_front(self, engine: Engine, patience: float = 20.0) -> RemoteEngine:
        """With texts as that engine has them."""
        front = RemoteEngine(Texts(engine.tokenizer, engine.chat_template, None), KEY, patience)
        front.update({name: host.address for name, host in self.hosts.items()})
        assert front.wait(30)
        self.wait_for(len(self.hosts), front)
        return front

    def brake(self, n: int) -> threading.Event:
        """Have each engine that is there stop after so many pieces of text, until this is set."""
        goes_on = threading.Event()
        for host in self.hosts.values():
            host.engine = Brake(host.engine, n, goes_on)  # type: ignore[assignment, arg-type]
        return goes_on

    def know(self) -> None:
        self.front.update({name: host.address for name, host in self.hosts.items()})

    def wait_for(self, n: int, front: RemoteEngine | None = None) -> None:
        """Until a front, the first one if none is named, has so many engines."""
        front = front or self.front
        until = time.monotonic() + 30
        while len(front._up) != n:
            assert time.monotonic() < until, front._links
            time.sleep(0.01)

    def serving(self) -> str:
        """The one that has a request."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            for name, host in self.hosts.items():
                if host.n_requests:
                    return name
            time.sleep(0.001)
        raise AssertionError("no host has a request")

    def kill(self, name: str) -> None:
        """As a kernel does it: the connections are gone, without a word."""
        host = self.hosts.pop(name)
        self.front.update({name: host.address for name, host in self.hosts.items()})
        for front in list(host._fronts):
            front._channel._socket.shutdown(socket.SHUT_RDWR)
        host.close()

    def close(self) -> None:
        self.front.close()
        for host in self.hosts.values():
            host.close()
