"""PLaMo 2's vocabularies (``tokenizer.ggml.model`` is "plamo2"): the segmentation of least cost.

A character that no token of it has is written in bytes, which costs more than any token. Scores are
rounded, of segmentations of one score the one with the longest first token counts, and spaces are
characters as others, as in llama.cpp's ``llm_tokenizer_plamo2``. That adds no token at either end,
whatever a file says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import copysign, floor, inf, isfinite

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.text.unigram import joined
from gguf_serve.engine.text.vocab import Attribute, Vocab
from gguf_serve.engine.text.words import untouched

SCALE = 1e4  # a score becomes an integer
UNKNOWN = 10_000_000  # what a character costs that becomes bytes
INVALID = 20_000_000  # a token that costs so much is never taken
BYTE_ORDER_MARK = "\ufeff"
# No text: control tokens are not, though llama.cpp takes their names for them
_APART = (Attribute.BYTE | Attribute.CONTROL | Attribute.UNKNOWN).value


def plamo_encoder(vocab: Vocab) -> Callable[[str], Iterator[list[int]]]:
    """Encoding of plain text; ModelError if scores or a byte are missing."""
    if not vocab.scores:
        raise ModelError("a plamo2 tokenizer needs tokenizer.ggml.scores")
    named = {vocab.tokens[id]: id for id in vocab.having(Attribute.BYTE)}
    missing = next((b for b in range(256) if f"<0x{b:02X}>" not in named), None)
    if missing is not None:
        raise ModelError(f"a plamo2 tokenizer needs a token for each byte, not all but {missing}")
    byte_ids = [named[f"<0x{b:02X}>"] for b in range(256)]
    costs = {
        token: (id, _cost(vocab.scores[id]))
        for id, token in enumerate(vocab.tokens)
        if token and not vocab.attributes[id] & _APART
    }
    costs = {token: entry for token, entry in costs.items() if entry[1] < INVALID}
    lengths = dict[str, set[int]]()  # of tokens, by their first character
    for token in costs:
        lengths.setdefault(token[0], set()).add(len(token))
    longest_first = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def segmented(text: str) -> list[int]:
        n = len(text)
        best, chosen = [inf] * n + [0], [(-1, 1)] * n  # from each character on
        for i in reversed(range(n)):
            for length in longest_first.get(text[i], ()):
                id, cost = costs.get(text[i : i + length], (-1, inf))
                if i + length <= n and best[i + length] + cost < best[i]:
                    best[i], chosen[i] = best[i + length] + cost, (id, length)
            if best[i + 1] + UNKNOWN < best[i]:
                best[i], chosen[i] = best[i + 1] + UNKNOWN, (-1, 1)
        found, at = list[int](), 0
        while at < n:
            id, length = chosen[at]
            found += [byte_ids[b] for b in text[at].encode()] if id < 0 else [id]
            at += length
        return found

    boundary = untouched(costs)

    def encode(text: str) -> Iterator[list[int]]:
        for piece in joined([text.removeprefix(BYTE_ORDER_MARK)], boundary):
            yield segmented(piece)

    return encode


def _cost(score: float) -> int:
    """Rounded half away from zero."""
    if not isfinite(score):
        return INVALID
    return -int(copysign(floor(abs(score * SCALE) + 0.5), score))
