"""Embeddings: from the hidden states of a prompt's tokens to its vectors.

Hidden states are what the last norm leaves (encoders: the last layer). They come in the order
of the tokens, in as many pieces as the prompt was computed in, some again if it was paused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.request import Pooling

Floats = npt.NDArray[np.float32]


class Pool:
    """The hidden states of one prompt of ``n_tokens``, taken in as they come."""

    def __init__(self, pooling: Pooling, n_tokens: int) -> None:
        self._pooling, self._n_tokens = pooling, n_tokens
        self._n_seen = 0
        self._kept: list[Floats] = []
        self._sum: npt.NDArray[np.float64] | None = None

    def wants(self, start: int, count: int) -> range:
        """Which of ``count`` tokens from position ``start`` matter, by their positions."""
        begin, end = max(start, self._n_seen), start + count
        if self._pooling == "cls":
            end = min(end, 1)
        elif self._pooling == "last":
            begin = max(begin, self._n_tokens - 1)
        return range(begin, max(begin, end))

    def add(self, start: int, states: Floats) -> None:
        """Take the states of the tokens from ``start`` on, those that ``wants`` names."""
        if not len(states):
            return
        self._n_seen = max(self._n_seen, start + len(states))
        if self._pooling == "mean":
            total = states.sum(0, dtype=np.float64)
            self._sum = total if self._sum is None else self._sum + total
        else:
            self._kept.append(states)

    @property
    def vectors(self) -> Floats:
        """float32 [vectors, n_embd], when all tokens have been taken in."""
        if self._sum is not None:
            return (self._sum / self._n_tokens)[None].astype(np.float32)
        return np.concatenate(self._kept)


def normalized(vector: Sequence[float], kind: int) -> list[float]:
    """A vector as llama-server's ``--embd-normalize`` wants it: -1 as it is, 0 with the largest
    magnitude 32760, 2 of Euclidean length 1, any other p of p-norm 1. Zeros stay zeros."""
    x = np.array(vector, np.float64)
    largest = float(np.abs(x).max(initial=0.0))
    if kind == 0 and largest > 0.0:
        x *= 32760.0 / largest
    elif kind > 0 and largest > 0.0:
        x /= largest  # or a power might be too large or too small for a number
        x /= (np.abs(x) ** kind).sum() ** (1.0 / kind)
    found: list[float] = x.tolist()
    return found
