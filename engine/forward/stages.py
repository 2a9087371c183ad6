"""A model over several processes, which are its stages: what the first tells the others.

The first has scheduler, page tables, embedding and output layer. Of each step it sends what a batch
is filled with, some kilobytes; all have recorded the same plan and carry out what is theirs of it,
and rows of activations go from one to the next (Recording).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.forward.batch import Filled
from gguf_serve.engine.model.wire import Wire
from gguf_serve.engine.recording.step import Mode
from gguf_serve.engine.scheduling.page_cache import PageCopy

StateMethod = Literal["claim", "save", "restore", "keep", "put_back"]
MOST_AHEAD = 2  # steps that the first stage begins before the others have done what came before


class Step(Struct, frozen=True):
    """To all stages: carry out what is yours of a step."""

    mode: Mode
    filled: Filled


class OnPages(Struct, frozen=True):
    """To all stages: copy these pages, too."""

    copies: Sequence[PageCopy]


class OnStates(Struct, frozen=True):
    """To all stages: call a method of the slots' states, too."""

    method: StateMethod
    arguments: tuple[int, ...]


class Done(Struct, frozen=True):
    """From a stage: it has carried out a step, unless there is a fault; then that is all."""

    fault: str = ""


class Leading:
    """A wire of the first stage. It lets the others have a few steps to do, so that pieces of a
    prompt, of which no rows come back, are computed by all stages at once, and so are steps of
    several streams."""

    def __init__(self, wire: Wire, name: str, most_ahead: int = MOST_AHEAD) -> None:
        self._wire, self._name, self._most_ahead = wire, name, most_ahead
        self._n_open = 0  # steps that are not done
        self.on_loss, self.close = wire.on_loss, wire.close

    def become(self, other: Leading) -> None:
        """Be the wire that the other one is, which nobody uses any more."""
        self.__dict__.update(other.__dict__)

    def send(self, message: object) -> None:
        """Waits where too many steps are not done."""
        if isinstance(message, Step):
            while self._n_open >= self._most_ahead:
                self._note(self._wire.receive())
            self._n_open += 1
        self._wire.send(message)

    def receive(self, seconds: float | None = None) -> Any:
        while isinstance(message := self._wire.receive(seconds), Done):
            self._note(message)
        return message

    def _note(self, done: Done) -> None:
        if done.fault:
            raise EngineError(f"{self._name} has failed: {done.fault}")
        self._n_open -= 1
