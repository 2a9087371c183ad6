"""ngram-cache: the commonest token after the last one to four, if it is common enough.

Sizes and thresholds are llama-server's (its lookup decoding), and so are the files: records of
an n-gram (4 x int32, -1 where it is shorter), the number of tokens after it (int32), and each of
these with how often it came (2 x int32).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from gguf_serve.engine.errors import EngineError

Counts = dict[tuple[int, ...], Counter[int]]
LARGEST = 4  # tokens of an n-gram
STATIC = 2  # of one in the static file
# By the length of an n-gram, from 1: how often it must have been seen, and the share in percent
# that its commonest successor must have; of the request's own, and of the dynamic file.
LAX = ((2, 66), (2, 50), (1, 50), (1, 50))
STRICT = ((4, 75), (3, 66), (2, 66), (2, 66))
MOST = 8  # tokens of a guess


class NGramCache:
    """Counts of the request's own tokens, and of two files that others have counted."""

    kind, trust = "ngram-cache", 0.5

    def __init__(self, prompt: Sequence[int], dynamic: Counts, static: Counts) -> None:
        self._own: Counts = {}
        self._dynamic, self._static, self._n_seen = dynamic, static, 0
        self._learn(prompt)

    def _learn(self, tokens: Sequence[int]) -> None:
        for i in range(self._n_seen, len(tokens)):
            for n in range(1, min(LARGEST, i) + 1):
                self._own.setdefault(tuple(tokens[i - n : i]), Counter())[tokens[i]] += 1
        self._n_seen = len(tokens)

    def propose(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        self._learn(tokens)
        last, found = list(tokens[-LARGEST:]), list[int]()
        while len(found) < min(MOST, most):
            token = self._next((*last, *found)[-LARGEST:])
            if token is None:
                break
            found.append(token)
        return found

    def _next(self, last: tuple[int, ...]) -> int | None:
        static = self._static.get(last[-STATIC:], Counter())
        for counts, bars in ((self._own, LAX), (self._dynamic, STRICT)):
            for n in range(len(last), 0, -1):
                found = counts.get(last[-n:])
                if found and (token := _common(found, static, *bars[n - 1])) is not None:
                    return token
        return _common(static, {}, *LAX[STATIC - 1]) if static else None

    def judge(self, n_right: int, n_guessed: int) -> None:
        pass


def _common(
    counts: Counter[int], static: Mapping[int, int], least: int, percent: int
) -> int | None:
    """The commonest token; what the static file has seen too counts a hundred times as often."""
    token = max(counts, key=lambda token: counts[token] * (100 * static.get(token, 0) or 1))
    total = counts.total()
    return token if total >= least and 100 * counts[token] >= percent * total else None


def read_counts(path: Path) -> Counts:
    """EngineError for a file that cannot be read, or is none of these."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EngineError(f"the n-gram cache {path} cannot be read: {error.strerror}") from error
    counts, at = Counts(), 0
    try:
        while at < len(content):
            *ngram, n = struct.unpack_from("<5i", content, at)
            pairs = struct.unpack_from(f"<{2 * n}i", content, at + 20)
            at += 20 + 8 * n
            key = tuple(token for token in ngram if token >= 0)
            counts[key] = Counter(dict(zip(pairs[::2], pairs[1::2], strict=True)))
    except struct.error as error:
        raise EngineError(f"{path} is no n-gram cache of llama-server's: {error}") from error
    return counts
