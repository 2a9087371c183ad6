"""A connection between two processes that know one key: typed messages both ways, and beats.

Each side proves by HMAC that it has the key before anything of it is unpickled. What is posted
meanwhile leaves as one frame, so that a step's events of many requests cost one. Silence of some
seconds is loss, however the other side went: killed, stopped, or behind a cut link.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

log = logging.getLogger(__name__)
BEAT = 1.0  # seconds
SILENCE = 4.0  # seconds, unless it is said
HANDSHAKE = 5.0  # seconds in which both must have proved that they have the key


class Channel:
    """``hear`` gets each message in the reader's thread, ``beat`` makes the message that is sent
    each second, whatever else is; ``lost`` is called once, when nothing can come any more."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        beat: Callable[[], object],
        hear: Callable[[object], None],
        lost: Callable[[], None],
        silence: float | None = None,
    ) -> None:
        self.name = name
        self._silence = SILENCE if silence is None else silence
        self._connection, self._beat, self._hear, self._lost = connection, beat, hear, lost
        self._beat_at = time.monotonic()  # the last one
        self._posted: queue.SimpleQueue[object | None] = queue.SimpleQueue()
        # The same socket once more: to shut it down wakes who reads or writes.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        for target in (self._write, self._read):
            threading.Thread(target=target, name=f"{name} {target.__name__}", daemon=True).start()

    def post(self, message: object) -> None:
        """Have a message sent; from any thread, without waiting. After a loss it is dropped."""
        self._posted.put(message)

    def close(self) -> None:
        """What is posted already leaves first, if it can; ``lost`` is called."""
        self._posted.put(None)

    def _write(self) -> None:
        try:
            while (batch := self._batch()) is not None:
                self._connection.send_bytes(pickle.dumps(batch, protocol=pickle.HIGHEST_PROTOCOL))
        except OSError as error:
            log.debug("%s: %s", self.name, error)
        self._shut()

    def _batch(self) -> list[object] | None:
        """All that is posted, or a beat; None: the end."""
        batch: list[object] = []
        try:
            message = self._posted.get(timeout=BEAT)
            while message is not None:
                batch.append(message)
                message = self._posted.get_nowait()
        except queue.Empty:
            if (now := time.monotonic()) - self._beat_at >= BEAT or not batch:
                self._beat_at = now
                batch.append(self._beat())
            return batch
        self._posted.put(None)  # the next batch is the end
        return batch or None

    def _read(self) -> None:
        try:
            while self._connection.poll(self._silence):
                for message in pickle.loads(self._connection.recv_bytes()):
                    self._hear(message)
            log.warning("%s: nothing has been heard for %g seconds", self.name, self._silence)
        except (OSError, EOFError) as error:
            log.debug("%s: %s", self.name, error)
        except Exception:
            log.exception("%s: a message cannot be read", self.name)
        self.close()
        self._shut()
        self._connection.close()
        self._socket.close()
        self._lost()

    def _shut(self) -> None:
        with suppress(OSError):  # it is shut
            self._socket.shutdown(socket.SHUT_RDWR)


def connected(address: tuple[str, int], key: bytes) -> Connection:
    """A connection to whoever listens there and has the key; OSError otherwise."""
    return _proved(socket.create_connection(address, HANDSHAKE), key, begins=False)


def accepted(listener: socket.socket, key: bytes) -> Callable[[], Connection]:
    """Wait for a connection; the result waits for the proof of the key, OSError without it."""
    accepted, _ = listener.accept()
    return lambda: _proved(accepted, key, begins=True)


def _proved(connected: socket.socket, key: bytes, *, begins: bool) -> Connection:
    connected.settimeout(None)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    watch = threading.Timer(HANDSHAKE, connected.shutdown, (socket.SHUT_RDWR,))
    watch.start()
    connection = Connection(os.dup(connected.fileno()))
    try:
        for prove in (deliver_challenge, answer_challenge)[:: 1 if begins else -1]:
            prove(connection, key)
    except Exception as error:
        connection.close()
        raise ConnectionRefusedError(f"the other side has not proved its key: {error}") from error
    finally:
        watch.cancel()
        connected.close()
    return connection
