"""The dialect of OpenAI's two completion APIs: events in, chunks or the whole object out.

Chunks and their order, usage and timings are as llama-server sends them; what differs
between the two APIs is a Shape.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from gguf_serve.engine.request import Event, Finished, Progress
from gguf_serve.server.dialects.openai.shapes import prompt_fields
from gguf_serve.server.errors import ApiError, plain_error
from gguf_serve.server.http.framing import SSE_DONE
from gguf_serve.server.requests.answer import (
    Choice,
    Piece,
    join,
    prompt_progress,
    random_id,
    timings,
    usage,
)
from gguf_serve.server.requests.generate import Options
from gguf_serve.server.requests.native_answer import NativeAnswers
from gguf_serve.server.version import BUILD_INFO


class Shape(Protocol):
    """What differs between the two completion APIs: the objects in ``choices``."""

    id_prefix: str
    whole_object: str
    chunk_object: str
    usage_in_final_chunk: bool
    prompt_in_choice: bool  # what is told of the prompt; else it stands beside the choices

    def opening(self, index: int, choice: Choice) -> dict[str, Any] | None:
        """What is sent before the first text of a choice."""
        ...

    def delta(self, index: int, piece: Piece) -> dict[str, Any]: ...
    def final(self, index: int, rest: Piece, finish_reason: str | None) -> dict[str, Any]: ...
    def whole(self, index: int, choice: Choice, piece: Piece) -> dict[str, Any]: ...


class Completions:
    """The dialect of both APIs: events in, chunks or the whole object out."""

    framing = SSE_DONE

    def __init__(
        self,
        shape: Shape,
        options: Options,
        choices: Sequence[Choice],
        model: str,
        native: NativeAnswers | None = None,
    ) -> None:
        """``native``: what ``__verbose`` shows; None: it is not there."""
        self.shape = shape
        self.options = options
        self.choices = choices
        self._native = native
        # Of a whole answer, or of one of which all is shown at the end.
        self._parts: list[list[Piece]] = [[] for _ in self.choices]
        self._opened: set[int] = set()
        self._n_running = len(self.choices)
        self.id = random_id(shape.id_prefix)
        self._head = {
            "id": self.id,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": BUILD_INFO,
        }
        self._chunk_head = self._head | {"object": shape.chunk_object}

    def chunks(self, index: int, event: Event) -> Iterable[object]:
        pieces = self.choices[index].take(event)
        if self._native is not None:
            self._parts[index].extend(pieces)
        if type(event) is Finished:
            return self._end(index, pieces)
        if not pieces:
            return self._progress(index, event) if type(event) is Progress else ()
        opening = self._open(index)
        return [*opening, *(self._delta(index, piece) for piece in pieces)]

    def last_chunks(self) -> Iterable[object]:
        if self.shape.usage_in_final_chunk or not self.options.include_usage:
            return ()
        return (self._chunk_head | {"choices": []} | self._totals(),)

    def failed(self, error: ApiError) -> Iterable[object]:
        return (plain_error(error),)

    def take(self, index: int, event: Event) -> None:
        self._parts[index].extend(self.choices[index].take(event))

    def whole(self) -> object:
        choices = [
            self.shape.whole(index, choice, join(self._parts[index]))
            for index, choice in enumerate(self.choices)
        ]
        whole = self._head | {"object": self.shape.whole_object, "choices": choices}
        for index, choice in enumerate(self.choices):
            place = choices[index] if self.shape.prompt_in_choice else whole
            place |= prompt_fields(self.options, choice)
        return whole | self._verbose(0) | self._totals()

    def _open(self, index: int) -> list[dict[str, Any]]:
        if index in self._opened:
            return []
        self._opened.add(index)
        opening = self.shape.opening(index, self.choices[index])
        told = prompt_fields(self.options, self.choices[index])
        if told:
            opening = opening or self.shape.delta(index, Piece())
        if opening is None:
            return []
        if self.shape.prompt_in_choice:
            return [self._chunk(opening | told)]
        return [self._chunk(opening) | told]

    def _progress(self, index: int, event: Progress) -> list[dict[str, Any]]:
        """Each repeats what opens the choice, as llama-server sends it."""
        self._opened.add(index)
        opening = self.shape.opening(index, self.choices[index])
        chunk = self._chunk(opening or self.shape.delta(index, Piece()))
        if self.options.timings_per_token:
            chunk["timings"] = timings([self.choices[index]])
        return [chunk | {"prompt_progress": prompt_progress(event)}]

    def _delta(self, index: int, piece: Piece) -> dict[str, Any]:
        chunk = self._chunk(self.shape.delta(index, piece))
        if self.options.timings_per_token:
            chunk["timings"] = timings([self.choices[index]])
        return chunk

    def _end(self, index: int, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        """What was held back, and the final chunk, with the tokens that show no text."""
        shown = [piece for piece in pieces if piece.shows]
        rest = next((piece for piece in pieces if not piece.shows), Piece())
        opening = self._open(index)
        return [*opening, *(self._delta(index, piece) for piece in shown), self._final(index, rest)]

    def _final(self, index: int, rest: Piece) -> dict[str, Any]:
        chunk = self._chunk(self.shape.final(index, rest, self.choices[index].finish_reason))
        self._n_running -= 1
        if self._n_running == 0 and self.shape.usage_in_final_chunk:
            chunk |= self._totals()
        elif self._n_running == 0 and not self.options.include_usage:
            chunk["timings"] = timings(self.choices)
        elif self.options.timings_per_token:
            chunk["timings"] = timings([self.choices[index]])
        return chunk | self._verbose(index)

    def _verbose(self, index: int) -> dict[str, Any]:
        if self._native is None:
            return {}
        return {"__verbose": self._native.verbose(index, join(self._parts[index]))}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._chunk_head, "choices": [choice]}

    def _totals(self) -> dict[str, object]:
        return {
            "usage": usage(self.choices, self.options.n),
            "timings": timings(self.choices),
        }
