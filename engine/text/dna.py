"""GPT-2's kind of vocabulary with DNA in it (``tokenizer.ggml.model`` is "hybriddna").

Between <dna> and </dna>, or the end of the text, six letters are a token; what is left at the end
is filled up with A, and what is no such token is <oov>. In the file these tokens end in a character
that no text has, which tells them from words of the same letters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gguf_serve.engine.text.bpe import byte_level_piece
from gguf_serve.engine.text.vocab import Vocab

Encode = Callable[[str], Iterator[list[int]]]
OPEN, CLOSE, UNKNOWN = "<dna>", "</dna>", "<oov>"
MARKER = "\ue000"
LETTERS = 6  # of a token


def dna_encoder(vocab: Vocab, encode_words: Encode) -> Encode:
    """Encoding of plain text, of which ``encode_words`` encodes what is not DNA; all of it, where
    the vocabulary has not these three tokens."""
    opening, closing, unknown = (vocab.ids.get(token) for token in (OPEN, CLOSE, UNKNOWN))
    if opening is None or closing is None or unknown is None:
        return encode_words

    def letters(text: str) -> Iterator[int]:
        data = text.encode().upper()  # of ASCII's letters alone
        for at in range(0, len(data), LETTERS):
            token = data[at : at + LETTERS].ljust(LETTERS, b"A")
            yield vocab.ids.get(token.decode("latin-1") + MARKER, unknown)

    def encode(text: str) -> Iterator[list[int]]:
        while text:
            words, opens, text = text.partition(OPEN)
            if words:
                yield from encode_words(words)
            if opens:
                dna, closes, text = text.partition(CLOSE)
                yield [opening, *letters(dna), *[closing] * bool(closes)]

    return encode


def dna_piece(token: str) -> bytes:
    """The bytes of a token."""
    return byte_level_piece(token.removesuffix(MARKER))
