"""Token bytes to text, one token at a time."""

from __future__ import annotations

import codecs
from collections.abc import Callable

_UTF8 = codecs.getincrementaldecoder("utf-8")


class TextDecoder:
    """Joins the bytes of tokens into text that never ends inside a character.

    Bytes that cannot become a character any more, whatever follows, are given as U+FFFD.
    """

    __slots__ = ("_decode", "_piece")

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._decode = _UTF8(errors="replace").decode

    def push(self, token_id: int) -> str:
        """The text that is complete with this token; may be empty."""
        return self._decode(self._piece(token_id))

    def flush(self) -> str:
        """The end of the text: U+FFFD for a character that was never completed, else ""."""
        return self._decode(b"", True)
