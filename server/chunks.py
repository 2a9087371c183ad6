"""The dialect of OpenAI's two completion APIs: events in, chunks or the whole object out.

Chunks and their order, usage and timings are as llama-server sends them; what differs
between the two APIs is a Shape.
"""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.request import Event, Finished
from server.answer import Choice, Piece, timings, usage
from server.prompts import Prompt
from server.version import BUILD_INFO

ID_LETTERS = string.ascii_letters + string.digits


class Shape(Protocol):
    """What differs between the two completion APIs: the objects in ``choices``."""

    id_prefix: str
    whole_object: str
    chunk_object: str
    usage_in_final_chunk: bool

    def opening(self, index: int, choice: Choice) -> dict[str, Any] | None:
        """What is sent before the first text of a choice."""
        ...

    def delta(self, index: int, piece: Piece) -> dict[str, Any]: ...
    def final(self, index: int, rest: Piece, finish_reason: str | None) -> dict[str, Any]: ...
    def whole(self, index: int, choice: Choice, piece: Piece) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Options:
    """What the client wants to see beside the text."""

    n: int = 1  # choices of each prompt
    n_top: int | None = None  # not None: log-probabilities, with so many likeliest tokens
    post_sampling: bool = False
    return_tokens: bool = False
    timings_per_token: bool = False
    include_usage: bool = False


class Completions:
    """The dialect of both APIs: events in, chunks or the whole object out."""

    def __init__(
        self, shape: Shape, options: Options, prompts: Sequence[Prompt], model: str
    ) -> None:
        self.shape = shape
        self.options = options
        self.choices = [Choice(prompt) for prompt in prompts for _ in range(options.n)]
        self._parts: list[list[Piece]] = [[] for _ in self.choices]  # of a whole answer
        self._opened: set[int] = set()
        self._n_running = len(self.choices)
        self._head = {
            "id": shape.id_prefix + "".join(secrets.choice(ID_LETTERS) for _ in range(32)),
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": BUILD_INFO,
        }
        self._chunk_head = self._head | {"object": shape.chunk_object}

    def chunks(self, index: int, event: Event) -> Iterable[object]:
        choice = self.choices[index]
        piece = choice.take(event)
        if type(event) is Finished:
            return [*self._open(index), self._final(index, piece or Piece())]
        if piece is None:
            return ()
        opening = () if index in self._opened else self._open(index)
        chunk = self._chunk(self.shape.delta(index, piece))
        if self.options.timings_per_token:
            chunk["timings"] = timings([choice])
        return (*opening, chunk)

    def last_chunks(self) -> Iterable[object]:
        if self.shape.usage_in_final_chunk or not self.options.include_usage:
            return ()
        return (self._chunk_head | {"choices": []} | self._totals(),)

    def take(self, index: int, event: Event) -> None:
        piece = self.choices[index].take(event)
        if piece is not None:
            self._parts[index].append(piece)

    def whole(self) -> object:
        choices = [
            self.shape.whole(index, choice, join(self._parts[index]))
            for index, choice in enumerate(self.choices)
        ]
        head = self._head | {"object": self.shape.whole_object}
        return head | {"choices": choices} | self._totals()

    def _open(self, index: int) -> list[dict[str, Any]]:
        if index in self._opened:
            return []
        self._opened.add(index)
        opening = self.shape.opening(index, self.choices[index])
        return [] if opening is None else [self._chunk(opening)]

    def _final(self, index: int, rest: Piece) -> dict[str, Any]:
        chunk = self._chunk(self.shape.final(index, rest, self.choices[index].finish_reason))
        self._n_running -= 1
        if self._n_running == 0 and self.shape.usage_in_final_chunk:
            chunk |= self._totals()
        elif self._n_running == 0 and not self.options.include_usage:
            chunk["timings"] = timings(self.choices)
        elif self.options.timings_per_token:
            chunk["timings"] = timings([self.choices[index]])
        return chunk

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._chunk_head, "choices": [choice]}

    def _totals(self) -> dict[str, object]:
        return {
            "usage": usage(self.choices, self.options.n),
            "timings": timings(self.choices),
        }


def join(pieces: Sequence[Piece]) -> Piece:
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.tokens),
        tuple(score for piece in pieces for score in piece.scores),
    )
