"""Guesses from what has followed the same n-gram before, in the request's own tokens.

Kinds and numbers are llama-server's (docs/speculative.md, pull request 18471 there).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice

from gguf_serve.engine.speculation.ngram_index import NGramIndex
from gguf_serve.engine.speculation_options import NGramSizes

MOST_VALUES = 4  # continuations of an n-gram that are told apart
MOST_PLACES = 64  # of an n-gram that are looked at


class NGramSimple:
    """What followed the last n tokens when they were last seen: between n and m tokens."""

    kind, trust = "ngram-simple", 0.7

    def __init__(self, sizes: NGramSizes, prompt: Sequence[int]) -> None:
        self._sizes, self._index = sizes, NGramIndex(sizes.n)
        self._index.extend(prompt)

    def propose(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        found = islice(self._index.earlier(tokens), MOST_PLACES)
        at = next((at for at in found if len(tokens) - at >= self._sizes.n), None)
        return () if at is None else tokens[at : at + self._sizes.m]

    def judge(self, n_right: int, n_guessed: int) -> None:
        pass


class NGramMap:
    """What followed the last n tokens where they were first seen, and no longer than it was right
    there the last time; from ``min_hits`` times on.

    With ``by_value`` it is the m tokens that have followed most often, of MOST_VALUES at most, if
    that was twice as often as all others together.
    """

    trust = 0.7

    def __init__(self, sizes: NGramSizes, prompt: Sequence[int], *, by_value: bool) -> None:
        self.kind = "ngram-map-k4v" if by_value else "ngram-map-k"
        self._sizes, self._by_value = sizes, by_value
        self._index = NGramIndex(sizes.n)
        self._index.extend(prompt)
        self._most = dict[tuple[int, ...], int]()  # tokens that were right last, by what they were
        self._last: tuple[int, ...] = ()

    def propose(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        m, end = self._sizes.m, len(tokens)
        found = list(islice(self._index.earlier(tokens), MOST_PLACES))
        values = [tuple(tokens[at : at + m]) for at in reversed(found) if at + m < end]
        if len(values) < self._sizes.min_hits or not values:
            return ()
        value = _favourite(values) if self._by_value else values[0]
        self._last = (*tokens[end - self._sizes.n :], *value)
        return value[: self._most.get(self._last, m)]

    def judge(self, n_right: int, n_guessed: int) -> None:
        self._most[self._last] = n_right


def _favourite(values: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The commonest of the first MOST_VALUES different ones; none if the others are nearly so."""
    counts = Counter[tuple[int, ...]]()
    for value in values:
        if value in counts or len(counts) < MOST_VALUES:
            counts[value] += 1
    (best, n), *_ = counts.most_common(1)
    n_others = counts.total() - n
    return best if not n_others or n >= 2 * n_others else ()
