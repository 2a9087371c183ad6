"""WordPiece, the tokenizer of BERT (``tokenizer.ggml.model`` is "bert").

As in GGUF files: a token that begins a word is written with ▁ before it, one that continues
a word without. Normalization and matching follow llama.cpp's ``llm_tokenizer_wpm_session``;
unlike BERT's own, a decomposed character keeps only its first code point.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

from gguf_serve.engine.text.vocab import Vocab
from gguf_serve.engine.text.windows import pieces
from gguf_serve.engine.text.words import remembering

_SPACES = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | frozenset(
    map(chr, range(0x2000, 0x200B))
)
_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
_SPACE = "".join(sorted(_SPACES))
_RANGES = "".join(f"{chr(first)}-{chr(last)}" for first, last in _CHINESE)
# After such a character a word ends for sure; there are more.
_ENDS_WORD = re.compile(rf"[{_SPACE}!-/:-@\[-`{{-~、。，{_RANGES}]")


class Normalization(dict[int, str]):
    """A table for ``str.translate``: spaces become " ", punctuation stands between spaces."""

    def __init__(self, lowercase: bool, strip_accents: bool) -> None:
        super().__init__()
        self._lowercase = lowercase
        self._strip_accents = strip_accents

    def __missing__(self, code_point: int) -> str:
        self[code_point] = replacement = self._normalized(chr(code_point))
        return replacement

    def _normalized(self, character: str) -> str:
        if self._strip_accents:
            character = unicodedata.normalize("NFD", character)[0]
        category = unicodedata.category(character)
        if character in _SPACES:
            return " "
        if character in "\0\ufffd" or category in ("Cc", "Cf", "Co", "Cs"):
            return ""
        if self._strip_accents and category[0] == "M":
            return ""
        # Only the simple mapping: İ has a lower case of two characters.
        lowered = character.lower()[0] if self._lowercase else character
        if _stands_alone(character, category):
            return f" {lowered} "
        return lowered


def _stands_alone(character: str, category: str) -> bool:
    code_point = ord(character)
    if category[0] == "P" or (category[0] == "S" and code_point < 0x7F):
        return True
    return any(first <= code_point <= last for first, last in _CHINESE)


def wordpiece_encoder(
    vocab: Vocab, lowercase: bool, strip_accents: bool
) -> Callable[[str], Iterator[list[int]]]:
    """Encoding of plain text; a word that is not made of tokens is the unknown token."""
    table = Normalization(lowercase, strip_accents)
    longest = max(map(len, vocab.tokens))
    unknown = [vocab.roles["unknown"]] if "unknown" in vocab.roles else []

    def encode_word(word: str) -> list[int]:
        word = "▁" + word
        ids: list[int] = []
        start = 0
        while start < len(word):
            for end in range(min(len(word), start + longest), start, -1):
                found = vocab.ids.get(word[start:end])
                if found is not None:
                    break
            else:
                return unknown
            ids.append(found)
            start = end
        return ids

    encode_words = remembering(encode_word)

    def encode_piece(text: str) -> list[int]:
        return encode_words(filter(None, text.translate(table).split(" ")))

    return lambda text: map(encode_piece, pieces(text, _word_end))


def _word_end(text: str, start: int, stop: int) -> int | None:
    found = _ENDS_WORD.search(text, start, stop)
    return None if found is None else found.end()
