"""Wires between the stages of a model (engine.model.wire), over channels."""

from __future__ import annotations

import logging
import queue
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from msgspec import Struct

from gguf_serve.engine.errors import EngineError, StageLostError
from gguf_serve.server.replicas.channel import Channel, accepted, connected
from gguf_serve.server.replicas.messages import Beat

log = logging.getLogger(__name__)
JOIN_SECONDS = 60.0  # in which all stages must have found each other
# A loss ends all that is served: a machine that is only slow must not look like one, and a process
# that is killed closes its connections at once.
SILENCE = 30.0  # seconds
Address = tuple[str, int]


class Join(Struct, frozen=True):
    """The first message of who connects: its number among the stages. The first stage says, too,
    what number the other one has, and where all others are."""

    number: int
    yours: int = 0
    others: tuple[Address, ...] = ()


class ChannelWire:
    """A wire to the stage ``name`` says. ``ended`` is called once, whoever ends it."""

    def __init__(
        self, connection: Connection, name: str, ended: Callable[[], None] = lambda: None
    ) -> None:
        self._name, self._ended = name, ended
        self._heard: queue.SimpleQueue[object] = queue.SimpleQueue()  # None: the end
        self._is_closed = self._is_lost = False
        self._on_loss: Callable[[str], None] = lambda reason: None
        self._channel = Channel(connection, name, Beat, self._hear, self._lose, SILENCE)
        self.send = self._channel.post

    def receive(self, seconds: float | None = None) -> Any:
        try:
            message = self._heard.get(timeout=seconds)
        except queue.Empty:
            return None
        if message is None:
            self._heard.put(None)
            raise StageLostError(self._reason)
        return message

    def on_loss(self, call: Callable[[str], None]) -> None:
        self._on_loss = call
        if self._is_lost:
            call(self._reason)

    def close(self) -> None:
        self._is_closed = True
        self._channel.close()

    @property
    def _reason(self) -> str:
        return f"{self._name} is gone"

    def _hear(self, message: object) -> None:
        if not isinstance(message, Beat):
            self._heard.put(message)

    def _lose(self) -> None:
        self._is_lost = True
        self._heard.put(None)
        if not self._is_closed:
            self._on_loss(self._reason)
        self._ended()


def lead(
    addresses: list[Address], key: bytes, ended: Callable[[], None] = lambda: None
) -> list[ChannelWire]:
    """Wires to the other stages, which are told of each other; EngineError if one is not there."""
    found = list[ChannelWire]()
    for i, address in enumerate(addresses, 1):
        name = f"stage {i} at {address[0]}:{address[1]}"
        try:
            found.append(ChannelWire(connected(address, key), name, ended))
        except OSError as error:
            for wire in found:
                wire.close()
            raise EngineError(f"{name} cannot be reached: {error}") from error
    for i, wire in enumerate(found, 1):
        wire.send(Join(0, i, tuple(addresses)))
    return found


def join(listener: socket.socket, key: bytes) -> list[ChannelWire | None]:
    """Wait for the first stage, and connect to the others: wires by number, None for this one.

    Raises EngineError or OSError if they do not come.
    """
    listener.settimeout(JOIN_SECONDS)
    found, number, n = dict[int, ChannelWire](), 0, 1
    while not number or len(found) < n - 1:
        prove = accepted(listener, key)
        try:
            wire = ChannelWire(prove(), "another stage")
        except ConnectionRefusedError as error:
            log.warning("a connection was refused: %s", error)
            continue
        message: Join = wire.receive(JOIN_SECONDS)
        found[message.number] = wire
        if message.number == 0:
            number, n = message.yours, len(message.others) + 1
            for i, address in enumerate(message.others[: number - 1], 1):
                found[i] = ChannelWire(connected(address, key), f"stage {i} at {address[0]}")
                found[i].send(Join(number))
    return [found.get(i) for i in range(n)]
