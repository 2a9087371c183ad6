"""DRY's sequence breakers: which tokens of a vocabulary hold one, or begin it.

As in llama.cpp (src/llama-sampler.cpp: get_overlapping_token_sequences).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_MAX_BREAKER_BYTES = 40
MAX_TAIL_TOKENS = 20
_CACHED = 8  # sets of breakers; one that is a single letter has 100,000 heads and more

Heads = dict[int, frozenset[tuple[int, ...]]]
Ids = NDArray[np.int64]
Encode = Callable[[str], list[int]]
Pieces = Callable[[int], bytes]


class Texts:
    """The bytes of all tokens, one after another, so that whoever searches them sees few."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        self._bytes = np.frombuffer(b"".join(pieces), np.uint8)
        self._ends = lengths.cumsum()
        self._starts = self._ends - lengths

    def holding(self, text: bytes) -> Ids:
        """The rising ids of tokens with a text anywhere in theirs."""
        n_places = max(self._bytes.size - len(text) + 1, 0)
        places = np.flatnonzero(self._bytes[:n_places] == text[0])
        for i in range(1, len(text)):
            places = places[self._bytes[places + i] == text[i]]
        tokens = self._ends.searchsorted(places, side="right")
        return np.unique(tokens[places + len(text) <= self._ends[tokens]])

    def ending(self, text: bytes) -> Ids:
        """The rising ids of tokens that end with a text."""
        tokens = np.flatnonzero(self._ends - self._starts >= len(text))
        for i in range(1, len(text) + 1):
            tokens = tokens[self._bytes[self._ends[tokens] - i] == text[-i]]
        return tokens


@lru_cache(_CACHED)
def breaker_heads(breakers: tuple[str, ...], n_vocab: int, encode: Encode, pieces: Pieces) -> Heads:
    """The tokens that hold or begin one of the breakers, with what must follow them.

    A token that holds a breaker has the empty tail (); one that ends with the beginning of
    a breaker has the tokens of its rest. Breakers are cut to 40 bytes, tails to 20 tokens.
    """
    texts = _texts(n_vocab, pieces)
    heads: Heads = {}
    for breaker in breakers:
        cut = breaker.encode()[:_MAX_BREAKER_BYTES].decode(errors="ignore").encode()
        for tokens, tail in _breaker_tokens(cut, texts, encode) if cut else ():
            only = frozenset({tail})  # one object for all of them
            for token in tokens.tolist():
                known = heads.get(token)
                heads[token] = only if known is None else known | only
    return heads


@lru_cache(maxsize=1)
def _texts(n_vocab: int, pieces: Pieces) -> Texts:
    return Texts([pieces(token) for token in range(n_vocab)])


def _breaker_tokens(
    breaker: bytes, texts: Texts, encode: Encode
) -> Iterator[tuple[Ids, tuple[int, ...]]]:
    holding = texts.holding(breaker)
    yield holding, ()
    for n in range(1, len(breaker)):
        rest = breaker[n:]
        if rest[0] & 0xC0 == 0x80:  # it starts inside a character, is no text and has no tokens
            continue
        tokens = np.setdiff1d(texts.ending(breaker[:n]), holding, assume_unique=True)
        if tokens.size:
            yield tokens, tuple(encode(rest.decode())[:MAX_TAIL_TOKENS])
