"""Where a text in SentencePiece's alphabet (▁ for a space) may be cut without loss.

If no token of a vocabulary has ▁ after another character, no merge ever joins a character
with a ▁ that follows it, so the words between can be encoded one by one, and remembered.
WordPiece's words are remembered too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_REMEMBERED_WORDS = 65536
_REMEMBERED_LENGTH = 32  # characters; longer words hardly ever come again


def attached(tokens: Iterable[str]) -> str:
    """The characters that some token has before a ▁."""
    inner = "\0".join(tokens).replace("\0▁", "\0")  # without most of them, which begin a token
    return "".join(sorted({part[-1:] for part in inner.split("▁")[:-1]} - {"", "\0"}))


def word_pattern(attached: str) -> str:
    """A regular expression whose matches cover any text, and which no token can straddle.

    Where some tokens do have a ▁ inside, the characters before it stay attached to it.
    """
    if not attached:
        return "▁*[^▁]+|▁+"
    return f"▁*(?:[^▁]+|(?<=[{re.escape(attached)}])▁+)+|▁+"


def word_end(attached: str) -> Callable[[str, int, int], int | None]:
    """Where a text that still has its spaces ends a word, at or after one place and before
    another; None: nowhere between."""
    search = re.compile(f"(?<=[^ ▁{re.escape(attached)}])(?=[ ▁])").search

    def end(text: str, start: int, stop: int) -> int | None:
        found = search(text, start, stop)
        return None if found is None else found.start()

    return end


def untouched(tokens: Iterable[str]) -> Callable[[str, int, int], int | None]:
    """Where no token can go on, since none has these two characters side by side; as word_end."""
    pairs = {token[i : i + 2] for token in tokens for i in range(len(token) - 1)}

    def end(text: str, start: int, stop: int) -> int | None:
        places = range(max(start, 1), min(stop, len(text)))
        return next((i for i in places if text[i - 1 : i + 1] not in pairs), None)

    return end


def remembering(encode_word: Callable[[str], list[int]]) -> Callable[[Iterable[str]], list[int]]:
    """The ids of words one after the other, each encoded once."""
    found: dict[str, list[int]] = {}

    def encode(words: Iterable[str]) -> list[int]:
        ids: list[int] = []
        for word in words:
            known = found.get(word)
            if known is None:
                known = encode_word(word)
                if len(word) <= _REMEMBERED_LENGTH:
                    if len(found) >= _REMEMBERED_WORDS:
                        found.clear()
                    found[word] = known
            ids += known
        return ids

    return encode
