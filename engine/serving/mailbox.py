"""What other threads have to say to the engine's, and what wakes it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from msgspec import Struct, field

from gguf_serve.engine.completion.stream import Stream
from gguf_serve.engine.errors import EngineStoppedError


class Submitted(Struct, frozen=True):
    """A new stream for the engine's thread."""

    stream: Stream


class Cancelled(Struct, frozen=True):
    """Nobody wants the stream any more."""

    stream: Stream


class ReasoningEnded(Struct, frozen=True):
    """The stream's reasoning is to be closed."""

    stream: Stream


class Task(Struct, frozen=True, eq=False):
    """Something for the engine's thread between two steps; ``future`` has what comes of it."""

    action: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.action())
        except Exception as error:  # the caller's to handle
            self.future.set_exception(error)

    def fail(self, error: Exception) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class SlotTask(Task, frozen=True, eq=False, kw_only=True):
    """Something to be done about a slot when it serves nobody."""

    slot: int


Message = Submitted | Cancelled | ReasoningEnded | Task


class Mailbox:
    """Messages to the engine's thread, from any other; it takes them until it is closed."""

    def __init__(self) -> None:
        self.wake = threading.Condition()  # notified of all that the engine's thread may wait for
        self.stopping = False
        self.fault = ""  # what has ended the engine; "": nothing, or the wish of a person
        self._messages: deque[Message] = deque()

    def __bool__(self) -> bool:
        """Whether there is something to be taken, or the engine is to end."""
        return bool(self._messages) or self.stopping

    @property
    def n_submitted(self) -> int:
        """Requests that the engine's thread has not seen."""
        with self.wake:
            return sum(isinstance(message, Submitted) for message in self._messages)

    def post(self, message: Message, *, refuse: bool = True) -> None:
        """EngineStoppedError if nobody will take it, unless that is not to be refused."""
        with self.wake:
            if refuse:
                self.check_open()
            self._messages.append(message)
            self.wake.notify()

    def notify(self) -> None:
        """Have the engine's thread look around."""
        with self.wake:
            self.wake.notify()

    def check_open(self) -> None:
        """EngineStoppedError if messages are taken no more."""
        if self.stopping:
            raise self.end

    def take(self) -> list[Message]:
        with self.wake:
            messages = list(self._messages)
            self._messages.clear()
            return messages

    def stop(self, fault: str = "") -> None:
        """Take nothing more, and have the engine's thread end."""
        with self.wake:
            self.stopping, self.fault = True, self.fault or fault
            self.wake.notify()

    @property
    def end(self) -> EngineStoppedError:
        """What is told to whoever comes too late."""
        return EngineStoppedError(self.fault or "the server is shutting down")
