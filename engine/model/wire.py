"""What a process with some of a model's layers (a stage) needs of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Wire(Protocol):
    """A connection to another stage's process, which keeps the order of what is sent."""

    def send(self, message: object) -> None:
        """Without waiting; what is sent to a stage that is gone is dropped."""
        ...

    def receive(self, seconds: float | None = None) -> Any:
        """The next message; None if none has come after so many seconds. Raises EngineError if
        none can come any more, or the other stage has failed."""
        ...

    def on_loss(self, call: Callable[[str], None]) -> None:
        """Have it called, in any thread, with the reason when the other stage is gone."""
        ...

    def close(self) -> None:
        """Leave the other stage."""
        ...
