"""The state of an answer while its events arrive: one Choice for each engine request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from engine.request import Delta, Finished, PromptScored, Started, Timings, TokenScore
from server.prompts import Prompt

FINISH_REASONS = {"eos": "stop", "word": "stop", "limit": "length", "cancelled": "stop"}


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that can be sent, with the tokens and scores that came up to it."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()


class Choice:
    """One completion. Tokens whose text is held back wait for the piece that shows it."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.started = Started(n_prompt=len(prompt.ids), n_cached=0, id_slot=-1)
        self.prompt_scores: tuple[TokenScore | None, ...] = ()
        self.finished: Finished | None = None
        self._held_tokens: tuple[int, ...] = ()
        self._held_scores: tuple[TokenScore, ...] = ()
        self._n_decoded = 0
        self._started_at = time.perf_counter()
        self._first_token_at: float | None = None

    def take(self, event: object) -> Piece | None:
        """The piece that an event completes; the last one, maybe without text, at the end."""
        if type(event) is Delta:
            return self._push(event)
        if type(event) is Started:
            self.started = event
            self._started_at = time.perf_counter()
        elif type(event) is PromptScored:
            self.prompt_scores = event.scores
        elif type(event) is Finished:
            self.finished = event
            if event.reason != "word":  # the tokens of a stop word are cut
                return Piece("", self._held_tokens, self._held_scores)
        return None

    def _push(self, delta: Delta) -> Piece | None:
        if self._first_token_at is None:
            self._first_token_at = time.perf_counter()
        self._n_decoded += len(delta.tokens)
        tokens = self._held_tokens + delta.tokens
        scores = self._held_scores + delta.scores
        if delta.text:
            self._held_tokens, self._held_scores = (), ()
            return Piece(delta.text, tokens, scores)
        self._held_tokens, self._held_scores = tokens, scores
        return None

    @property
    def finish_reason(self) -> str | None:
        return FINISH_REASONS[self.finished.reason] if self.finished else None

    @property
    def timings(self) -> Timings:
        """The engine's when it has ended, before that what can be seen from here."""
        if self.finished is not None:
            return self.finished.timings
        now = time.perf_counter()
        first = self._first_token_at or now
        return Timings(
            cache_n=self.started.n_cached,
            prompt_n=self.started.n_prompt - self.started.n_cached,
            prompt_ms=1e3 * (first - self._started_at),
            predicted_n=self._n_decoded,
            predicted_ms=1e3 * (now - first),
        )


def usage(choices: Sequence[Choice], n: int) -> dict[str, object]:
    """Counts of all choices; a prompt counts once for its `n` choices."""
    prompts = choices[::n]
    n_prompt = sum(choice.started.n_prompt for choice in prompts)
    n_completion = sum(choice.timings.predicted_n for choice in choices)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(choice.started.n_cached for choice in prompts)
        },
    }


def timings(choices: Sequence[Choice]) -> dict[str, float]:
    """llama-server's ``timings``; of several choices the sums and the longest times."""
    each = [choice.timings for choice in choices]
    prompt_n = sum(one.prompt_n for one in each)
    prompt_ms = max(one.prompt_ms for one in each)
    predicted_n = sum(one.predicted_n for one in each)
    predicted_ms = max(one.predicted_ms for one in each)
    # The first token of a choice comes with its prompt.
    n_steps = sum(max(one.predicted_n - 1, 0) for one in each)
    return {
        "cache_n": sum(one.cache_n for one in each),
        "prompt_n": prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": ratio(prompt_ms, prompt_n),
        "prompt_per_second": ratio(1e3 * prompt_n, prompt_ms),
        "predicted_n": predicted_n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": ratio(predicted_ms, n_steps),
        "predicted_per_second": ratio(1e3 * n_steps, predicted_ms),
    }


def ratio(dividend: float, divisor: float) -> float:
    return dividend / divisor if divisor > 0 else 0.0
