"""SentencePiece-style byte-pair encoding by scores (``tokenizer.ggml.model`` is "llama").

Of all adjacent pairs whose concatenation is a token, the one with the highest score is
merged first, the leftmost of equals, until none is left; as llama.cpp's
``llm_tokenizer_spm_session`` does it. A library that ranks merges cannot be exact here:
the same token may come from several pairs, and tokens may have equal scores.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator
from itertools import pairwise

from gguf_serve.engine.text.vocab import Vocab
from gguf_serve.engine.text.windows import pieces
from gguf_serve.engine.text.words import attached, remembering, word_end, word_pattern

_NOT_A_TOKEN = float("-inf")
_SHORT = 48  # symbols; up to here scanning a list is faster than a heap

MISSING = -1  # the id of no token, whose score is the last one below
Get = Callable[[str, int], int]  # a token's id, or what is given


def escaped_piece(token: str) -> bytes:
    """The bytes of a token in SentencePiece's alphabet."""
    return token.replace("▁", " ").encode()


def score_encoder(vocab: Vocab) -> Callable[[str], Iterator[list[int]]]:
    """Encoding of plain text, already prefixed with a space if the vocabulary wants it."""
    scores = [*(vocab.scores or [0.0] * len(vocab.tokens)), _NOT_A_TOKEN]
    get: Get = vocab.ids.get  # no second table of as many tokens: that takes as long as the first
    before_spaces = attached(vocab.tokens)
    words = re.compile(word_pattern(before_spaces)).findall
    boundary = word_end(before_spaces)
    byte_ids = [_byte_id(vocab, byte) for byte in range(256)]

    def encode_word(word: str) -> list[int]:
        symbols = list(word)
        if len(symbols) > _SHORT:
            symbols = _merge_by_heap(symbols, get, scores)
        else:
            _merge_by_scan(symbols, get, scores)
        ids: list[int] = []
        for symbol in symbols:
            known = vocab.ids.get(symbol)
            if known is not None:
                ids.append(known)
            else:
                ids += [i for byte in symbol.encode() if (i := byte_ids[byte]) != MISSING]
        return ids

    encode_words = remembering(encode_word)

    def encode_piece(text: str) -> list[int]:
        return encode_words(words(text.replace(" ", "▁")))

    return lambda text: map(encode_piece, pieces(text, boundary))


def _byte_id(vocab: Vocab, byte: int) -> int:
    """The token of a byte; where there is none the unknown token, and else nothing."""
    for text in (f"<0x{byte:02X}>", chr(byte) if byte < 128 else ""):
        if text in vocab.ids:
            return vocab.ids[text]
    return vocab.roles.get("unknown", MISSING)


def _merge_by_scan(symbols: list[str], get: Get, scores: list[float]) -> None:
    """Merge ``symbols`` in place; quadratic, with a tiny constant."""
    pairs = [scores[get(left + right, MISSING)] for left, right in pairwise(symbols)]
    while pairs and (best := max(pairs)) != _NOT_A_TOKEN:
        i = pairs.index(best)
        merged = symbols[i] + symbols.pop(i + 1)
        symbols[i] = merged
        del pairs[i]
        if i < len(pairs):
            pairs[i] = scores[get(merged + symbols[i + 1], MISSING)]
        if i:
            pairs[i - 1] = scores[get(symbols[i - 1] + merged, MISSING)]


def _merge_by_heap(symbols: list[str], get: Get, scores: list[float]) -> list[str]:
    """The merged symbols, in order; n log n. A symbol merged into its left one is ""."""
    n = len(symbols)
    before, after = list(range(-1, n - 1)), list(range(1, n + 1))
    # (-score, left, right, length): stale if a symbol is gone or the length has changed
    heap = [
        (-scores[found], i, i + 1, 2)
        for i in range(n - 1)
        if (found := get(symbols[i] + symbols[i + 1], MISSING)) != MISSING
    ]
    heapq.heapify(heap)
    while heap:
        _, left, right, length = heapq.heappop(heap)
        first, second = symbols[left], symbols[right]
        if not first or not second or len(first) + len(second) != length:
            continue
        symbols[left] = merged = first + second
        symbols[right] = ""
        after[left] = following = after[right]
        if following < n:
            before[following] = left
            if (found := get(merged + symbols[following], MISSING)) != MISSING:
                size = length + len(symbols[following])
                heapq.heappush(heap, (-scores[found], left, following, size))
        preceding = before[left]
        if preceding >= 0 and (found := get(symbols[preceding] + merged, MISSING)) != MISSING:
            size = length + len(symbols[preceding])
            heapq.heappush(heap, (-scores[found], preceding, left, size))
    return [symbol for symbol in symbols if symbol]
