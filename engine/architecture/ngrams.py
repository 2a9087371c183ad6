"""N-gram embeddings: which rows of their table a token has, by hashes of it and those before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile


class NGrams(Struct, frozen=True):
    """Hashes of the last 2, 3, ... tokens, ``per_gram`` of each kind.

    A hash is the exclusive or of tokens times their multiplier, modulo the size of the part of
    the table that begins at the offset. Tokens before an end of text, or before the beginning,
    count as an end of text.
    """

    multipliers: tuple[int, ...]  # the token's own first
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    per_gram: int
    eos: int

    @property
    def n_heads(self) -> int:
        return len(self.offsets)

    def rows(self, tokens: Sequence[int], start: int, count: int) -> npt.NDArray[np.int32]:
        """Rows of the table for tokens [start, start + count): int32 [count, n_heads]. Negative
        tokens, the places of images, end n-grams as the end of a text does."""
        reach = len(self.multipliers) - 1
        before = [self.eos] * max(0, reach - start) + list(tokens[max(0, start - reach) : start])
        ids = np.array([*before, *tokens[start : start + count]], np.int64)
        window = np.where(ids < 0, self.eos, ids).astype(np.uint64)
        mixed = window[reach:] * np.uint64(self.multipliers[0])
        cut = np.zeros(count, bool)
        result = np.empty((count, self.n_heads), np.int32)
        for back in range(1, reach + 1):
            earlier = window[reach - back : reach - back + count]
            cut |= earlier == self.eos
            chosen = np.where(cut, np.uint64(self.eos), earlier)
            mixed = mixed ^ (chosen * np.uint64(self.multipliers[back]))
            first = (back - 1) * self.per_gram
            for head in range(first, first + self.per_gram):
                row = mixed % np.uint64(self.sizes[head]) + np.uint64(self.offsets[head])
                result[:, head] = row.astype(np.int32)
        return result


def read_ngrams(gguf: GGUFFile) -> NGrams | None:
    """The file's n-gram hashes, None if it has none; ModelError for numbers that cannot be."""

    def key(name: str) -> str:
        return gguf.arch_key(f"ple.{name}")

    def numbers(name: str, n: int) -> tuple[int, ...]:
        value = gguf.metadata.get(key(name), ())
        found = tuple(int(v) for v in value) if not isinstance(value, str) else ()
        if len(found) < n or any(v < 0 for v in found):
            raise ModelError(f"{gguf.path}: {key(name)} has {len(found)} values, not {n}")
        return found[:n]

    if key("layers") not in gguf.metadata:
        return None
    size, per_gram = gguf.get_int(key("ngram_size")), gguf.get_int(key("heads_per_ngram"))
    if not 2 <= size <= 16 or not 0 < per_gram <= 64:
        raise ModelError(
            f"{gguf.path}: {per_gram} hashes (heads_per_ngram) of {size} tokens (ngram_size), "
            "expected 1 to 64 of 2 to 16"
        )
    n_heads = (size - 1) * per_gram
    ngrams = NGrams(
        numbers("layer_multipliers", size), numbers("head_offsets", n_heads),
        numbers("head_vocab_sizes", n_heads), per_gram, gguf.get_int(key("eos_token_id")),
    )  # fmt: skip
    table = gguf.tensors.get("per_layer_token_embd.weight")
    n_rows = 0 if table is None else table.shape[-1]
    ends = [at + n for at, n in zip(ngrams.offsets, ngrams.sizes, strict=True)]
    if min(ngrams.sizes) < 1 or max(ends) > n_rows:
        raise ModelError(
            f"{gguf.path}: hashes up to {max(ends)} for {n_rows} rows of per_layer_token_embd"
        )
    return ngrams
