"""Adapters that a model switches itself: tokens that turn one on, for all that follow them.

In the file a head of attention finds the adapter's number: every token's value is the number of
the adapter that it turns on, 0 for most, and its key is the gain, or for most its negative. The
rounded mean by their softmax depends on the tokens alone, so it is computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile

Ints = npt.NDArray[np.int32]


class Switch(Struct, frozen=True, dict=True):
    """``tokens``: that of adapter 1, 2 and so on; ``substitutes``: whose embeddings they have."""

    tokens: tuple[int, ...]
    substitutes: tuple[int, ...]
    gain: float
    n_vocab: int

    @property
    def n_adapters(self) -> int:
        return len(self.tokens)

    @cached_property
    def _numbers(self) -> Ints:
        """By token: the adapter that it turns on, or 0; the last is that of -1, no token."""
        numbers = np.zeros(self.n_vocab + 1, np.int32)
        numbers[list(self.tokens)] = np.arange(1, self.n_adapters + 1)
        return numbers

    @cached_property
    def embedded(self) -> Ints:
        """By token: the one whose embedding it has."""
        ids = np.arange(self.n_vocab, dtype=np.int32)
        ids[list(self.tokens)] = self.substitutes
        return ids

    def scales(self, tokens: Sequence[int], start: int, count: int) -> npt.NDArray[np.float32]:
        """1 for the adapter that is on, of tokens [start, start + count): float32 [count,
        adapters]. Negative tokens are the places of images."""
        end = start + count
        numbers = self._numbers[np.maximum(tokens[:end], -1)]
        n_on = np.cumsum(numbers > 0)[start:]
        n_off = np.arange(start + 1, end + 1) - n_on
        weights = n_on + n_off * np.exp(-2 * self.gain)
        mean = np.cumsum(numbers, dtype=np.int64)[start:] / weights
        chosen: Ints = np.floor(mean + 0.5).astype(np.int32)
        scales: npt.NDArray[np.float32] = np.zeros((count, self.n_adapters), np.float32)
        rows = np.flatnonzero(chosen)
        scales[rows, chosen[rows] - 1] = 1
        return scales


def read_switch(gguf: GGUFFile, n_vocab: int) -> Switch | None:
    """The file's, None if it has none; ModelError for tokens that the model does not have."""

    def tokens(name: str) -> tuple[int, ...]:
        key = gguf.arch_key(f"adapters.{name}")
        value = gguf.metadata.get(key)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or len(value) != n:
            raise ModelError(f"{gguf.path}: {key} is {value}, expected {n} tokens")
        found = tuple(int(v) for v in value)
        wrong = next((token for token in found if not 0 <= token < n_vocab), None)
        if wrong is not None:
            raise ModelError(f"{gguf.path}: {key} has {wrong}, not one of {n_vocab} tokens")
        return found

    count = gguf.arch_key("adapters.count")
    if count not in gguf.metadata:
        return None
    n = gguf.get_int(count)
    if not 0 < n <= 4096:
        raise ModelError(f"{gguf.path}: {count} is {n}, expected 1 to 4096")
    gain = gguf.get_float(gguf.arch_key("adapters.router_gain"))
    if not 0 < gain < 1000:
        raise ModelError(f"{gguf.path}: {gguf.arch_key('adapters.router_gain')} is {gain}, not > 0")
    return Switch(tokens("token_ids_activate"), tokens("token_ids_substitute"), gain, n_vocab)
