"""A request on its way to an engine elsewhere, and what its client has had of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from msgspec.structs import replace

from gguf_serve.engine.request import (
    Delta,
    Event,
    Failed,
    Finished,
    Generation,
    Mark,
    Progress,
    PromptScored,
    Request,
    Resume,
    Sound,
    Started,
    Timings,
)

log = logging.getLogger(__name__)


class Flight:
    """Every event passes through here; so an engine that goes on with a request after another
    tells nothing twice. Used by one thread at a time."""

    def __init__(
        self, request: Request, on_event: Callable[[Event], None], *, can_resume: bool
    ) -> None:
        """``can_resume`` False: an engine that takes over begins anew, and makes the same."""
        self.request = request
        self.tokens: list[int] = []  # delivered
        self.n_moves = 0
        self.n_tries = 0  # engines that had begun with it, and were lost before another token
        self.has_slot = False  # at the engine that has it now
        self.is_cancelled = self.ended = False
        self._on_event, self._can_resume = on_event, can_resume
        self._n_characters = self._n_bytes = 0  # of text; of sound
        self._before = request.resume or Resume((), 0, Mark())  # had before it came here
        self._mark = self._before.mark
        # Of an engine that has begun anew.
        self._skip_tokens = self._skip_characters = self._skip_bytes = 0
        self._started: Started | None = None
        self._is_scored = False
        self._began_at = time.perf_counter()
        self._first_at = self._last_at = 0.0

    def rest(self) -> Request:
        """What an engine is to be asked for."""
        if not self.tokens and not self._n_characters and not self._n_bytes:
            return self.request
        if not self._can_resume:
            self._skip_bytes = self._n_bytes
            self._skip_tokens, self._skip_characters = len(self.tokens), self._n_characters
            return self.request
        before = self._before
        request = replace(
            self.request,
            wants=Generation(),  # a prompt's scores came before the text
            resume=Resume(
                (*before.tokens, *self.tokens),
                before.n_characters + self._n_characters,
                self._mark,
            ),
        )
        if request.max_ms:
            spent = int(1e3 * (self._last_at - self._first_at))
            request = replace(request, max_ms=max(request.max_ms - spent, 1))
        return request

    def hear(self, event: Event) -> None:
        """Tell the client an event, or what of it it does not know yet."""
        match event:
            case Started():
                self.has_slot = True
                if self._started is not None:
                    return
                self._started = event
            case Progress() if self.n_moves:
                return
            case PromptScored():
                if self._is_scored:
                    return
                self._is_scored = True
            case Delta():
                event = self._new(event)
                self._take(event)
            case Sound():
                event = self._new_sound(event)
            case Finished() if self.n_moves:
                event = replace(event, timings=self._timings(event.timings))
        self.tell(event)

    def tell(self, event: Event) -> None:
        """A receiver's fault is its own."""
        if self.ended:
            return
        self.ended = isinstance(event, Finished | Failed)
        try:
            self._on_event(event)
        except Exception:
            log.exception("the receiver of a request's events has failed")

    def cancelled(self) -> Finished:
        """Its end where no engine tells it."""
        return Finished("cancelled", self._timings(Timings()))

    def lose(self) -> None:
        """Its engine is gone. Who was in line only is not what it died of."""
        self.n_moves += 1
        self.n_tries += self.has_slot
        self.has_slot = False

    def _new(self, delta: Delta) -> Delta:
        n_tokens = min(self._skip_tokens, len(delta.tokens))
        n_characters = min(self._skip_characters, len(delta.text))
        self._skip_tokens -= n_tokens
        self._skip_characters -= n_characters
        if not n_tokens and not n_characters:
            return delta
        return replace(
            delta, text=delta.text[n_characters:], tokens=delta.tokens[n_tokens:],
            scores=delta.scores[n_tokens:],
        )  # fmt: skip

    def _new_sound(self, sound: Sound) -> Sound:
        n_bytes = min(self._skip_bytes, len(sound.pcm))
        self._skip_bytes -= n_bytes
        if n_bytes < len(sound.pcm):
            self.n_tries = 0
        self._n_bytes += len(sound.pcm) - n_bytes
        self._note_time()
        return Sound(sound.pcm[n_bytes:]) if n_bytes else sound

    def _take(self, delta: Delta) -> None:
        self.tokens += delta.tokens
        if delta.tokens:
            self.n_tries = 0
        self._n_characters += len(delta.text)
        self._mark = delta.mark or self._mark
        self._note_time()

    def _note_time(self) -> None:
        self._last_at = time.perf_counter()
        self._first_at = self._first_at or self._last_at

    def _timings(self, last: Timings) -> Timings:
        """Of all engines: the prompt as the first one had it, the rest by this side's clock."""
        prompt = self._started or Started(0, 0, -1)
        first = self._first_at or time.perf_counter()
        return replace(
            last,
            cache_n=prompt.n_cached,
            prompt_n=prompt.n_prompt - prompt.n_cached,
            prompt_ms=1e3 * (first - self._began_at),
            predicted_n=len(self.tokens) or last.predicted_n,  # of sound that which began anew
            predicted_ms=1e3 * (self._last_at - self._first_at),
        )
