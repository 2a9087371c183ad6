"""Penalties on what was already said: repetition counts, and DRY ("don't repeat yourself").

Both keep their own view of the history (the prompt, then each accepted token), say which
tokens' logits they touch, and are a step of the sampler's chain. Formulas, limits and
constants are those of llama.cpp (src/llama-sampler.cpp: penalties, dry).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from operator import add

from gguf_serve.engine.sampling.candidates import Tokens
from gguf_serve.engine.sampling.dry_breakers import MAX_TAIL_TOKENS, Heads

_LOG_FLOAT32_MAX = 88.7228391


class Repetition:
    """Repeat, frequency and presence penalties over the last ``window`` tokens."""

    def __init__(
        self, window: int, repeat: float, frequency: float, presence: float, prompt: Sequence[int]
    ) -> None:
        self._window = window
        self._repeat = repeat
        self._frequency = frequency
        self._presence = presence
        self.raises = repeat < 1.0 or frequency < 0.0 or presence < 0.0  # some token's logit
        self._recent = deque(prompt[-window:])
        self._counts: dict[int, int] = dict(Counter(self._recent))

    def accept(self, token: int) -> None:
        self._recent.append(token)
        counts = self._counts
        counts[token] = counts.get(token, 0) + 1
        if len(self._recent) > self._window:
            oldest = self._recent.popleft()
            if counts[oldest] == 1:
                del counts[oldest]
            else:
                counts[oldest] -= 1

    def touched(self) -> Collection[int]:
        return self._counts.keys()

    def __call__(self, tokens: Tokens) -> Tokens:
        return tokens.changed(self._counts, self._penalized)

    def _penalized(self, logit: float, count: int) -> float:
        # A negative logit is multiplied: dividing it would make the token likelier.
        logit = logit * self._repeat if logit <= 0.0 else logit / self._repeat
        return logit - (count * self._frequency + self._presence)


class Dry:
    """A penalty on each token that would lengthen a repetition of the text's end.

    Where the last n tokens occurred before, the token that followed there costs
    multiplier * base ** (n - allowed_length), if n >= allowed_length. No repetition reaches
    back over a sequence breaker. ``heads`` maps a token that holds or begins a breaker to
    the token sequences that complete it.

    Of the history, only places where the last token occurred can end a repetition. Their
    lengths follow from those of the step before, so that a token costs as much as the
    number of such places, not of the window.
    """

    def __init__(
        self,
        window: int,
        multiplier: float,
        base: float,
        allowed_length: int,
        heads: Heads,
        prompt: Sequence[int],
    ) -> None:
        self._window = window
        self._multiplier = multiplier
        self.raises = multiplier < 0.0
        self._base = base
        self._allowed = allowed_length
        self._max_exponent = int(_LOG_FLOAT32_MAX / math.log(base)) if base > 1.000001 else window
        self._heads = heads
        self._history = list(prompt[-window:])
        self._places: dict[int, list[int]] = {}  # token -> its rising positions
        for i, token in enumerate(self._history):
            self._places.setdefault(token, []).append(i)
        self._lengths = suffix_lengths(self._history)
        self._amounts: dict[int, float] | None = None

    def accept(self, token: int) -> None:
        n = len(self._history)
        places = self._places.setdefault(token, [])
        before = self._lengths
        recent = places[bisect_left(places, n + 1 - self._window) :]
        self._lengths = {i: before.get(i - 1, 0) + 1 for i in recent}
        places.append(n)
        self._history.append(token)
        self._amounts = None

    def touched(self) -> Collection[int]:
        return self.amounts().keys()

    def __call__(self, tokens: Tokens) -> Tokens:
        return tokens.changed(self.amounts(), add)

    def amounts(self) -> Mapping[int, float]:
        """What is added to each token's logit; tokens without a penalty are left out."""
        if self._amounts is None:
            self._amounts = self._penalize()
        return self._amounts

    def _penalize(self) -> dict[int, float]:
        longest = self._repetitions()
        if not longest:
            return {}
        limit = self._limit(max(longest.values()))
        if limit < self._allowed:
            return {}
        amounts = {}
        for token, length in longest.items():
            if () not in self._heads.get(token, ()):
                exponent = min(min(length, limit) - self._allowed, self._max_exponent)
                amounts[token] = -self._multiplier * self._base**exponent
        return amounts

    def _repetitions(self) -> dict[int, int]:
        """For each token, the longest repetition that it would lengthen, if long enough."""
        history, allowed = self._history, self._allowed
        size = min(len(history), self._window)
        start = len(history) - size
        if size <= allowed:
            return {}
        longest = dict.fromkeys(history[start + 1 :], 0) if allowed <= 0 else {}
        for i, length in self._lengths.items():
            length = min(length, i - start + 1)
            if length >= allowed and length > longest.get(history[i + 1], -1):
                longest[history[i + 1]] = length
        return longest

    def _limit(self, longest: int) -> int:
        """The number of tokens since the last sequence breaker, exact up to ``longest``."""
        history, heads = self._history, self._heads
        n = len(history)
        size = min(n, self._window)
        for i in range(min(size, longest + MAX_TAIL_TOKENS)) if heads else ():
            tails = heads.get(history[n - 1 - i], ())
            done = [t for t in tails if len(t) <= i and (*history[n - i : n - i + len(t)],) == t]
            if done:
                return i - max(map(len, done))
        return size


def suffix_lengths(history: Sequence[int]) -> dict[int, int]:
    """How many tokens ending at i equal the history's last ones, for each i where any do.

    The Z-function of the reversed history: linear, whatever repeats.
    """
    reverse = history[::-1]
    n = len(reverse)
    z = [0] * n
    left = right = 0  # the match that reaches furthest: reverse[left:right]
    for i in range(1, n):
        length = min(z[i - left], right - i) if i < right else 0
        while i + length < n and reverse[length] == reverse[i + length]:
            length += 1
        z[i] = length
        if i + length > right:
            left, right = i, i + length
    return {n - 1 - i: length for i, length in enumerate(z) if length}
