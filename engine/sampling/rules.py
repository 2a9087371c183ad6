"""The steps that hold a request's TokenRules, before all samplers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from gguf_serve.engine.sampling.candidates import Filter, Tokens
from gguf_serve.engine.sampling_params import TokenRules


class Bans:
    """A step that rules out what must not come next, by what has been written since the prompt."""

    raises = False  # no logit

    def __init__(
        self, min_tokens: int, ends: Collection[int], bad_words: Iterable[Sequence[int]]
    ) -> None:
        self._n_left = min_tokens
        self._ends = frozenset(ends)
        self._always = {word[0] for word in bad_words if len(word) == 1}
        self._last: dict[int, list[Sequence[int]]] = {}  # by the token before the last one
        longest = 1
        for word in bad_words:
            if len(word) > 1:
                self._last.setdefault(word[-2], []).append(word)
                longest = max(longest, len(word))
        self._written: deque[int] = deque(maxlen=longest - 1)
        self._banned: set[int] | None = None  # next; None: not known yet

    def accept(self, token: int) -> None:
        self._n_left -= 1
        self._written.append(token)
        self._banned = None

    def touched(self) -> Collection[int]:
        """The tokens that may not come next."""
        if self._banned is None:
            self._banned = self._find()
        return self._banned

    def _find(self) -> set[int]:
        banned = self._always | self._ends if self._n_left > 0 else set(self._always)
        if self._written:
            written = tuple(self._written)
            for word in self._last.get(written[-1], ()):
                if written[-len(word) + 1 :] == tuple(word[:-1]):
                    banned.add(word[-1])
        return banned

    def __call__(self, tokens: Tokens) -> Tokens:
        banned = dict.fromkeys(self.touched(), -math.inf)
        return tokens.changed(banned, lambda logit, ban: logit + ban) if banned else tokens


def bans(rules: TokenRules, eog_ids: frozenset[int]) -> Bans | None:
    """The step for these rules; None where nothing is banned."""
    if rules.min_tokens <= 0 and not rules.bad_words:
        return None
    return Bans(rules.min_tokens, eog_ids | rules.stop_ids, rules.bad_words)


def only(allowed: Collection[int]) -> Filter:
    """These tokens; of a whole row."""
    ids = np.array(sorted(set(allowed)), np.intp)
    return lambda tokens: tokens.pool().take(ids)
