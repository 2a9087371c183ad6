"""Cutting a text at the special tokens written in it.

The rule is llama.cpp's (``tokenizer_st_partition``): one token after the other, the longest
first (in UTF-8 bytes), each at every place where the text is still uncut. This is not the
leftmost-longest match of other libraries: a long token wins over a shorter one before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gguf_serve.engine.text.vocab import Attribute, Vocab

_GROUP = 3  # characters by which tokens are grouped for the first search
_SPACE = " \t\n\v\f\r"  # C's isspace, which is bytewise
_SPACES = re.compile(f"[{_SPACE}]*")


class SpecialTokens:
    """The tokens that are recognised in a text before it is encoded."""

    def __init__(self, vocab: Vocab) -> None:
        hidden = Attribute.CONTROL | Attribute.UNKNOWN
        special = vocab.having(hidden | Attribute.USER_DEFINED)
        special.sort(key=lambda i: -len(vocab.tokens[i].encode()))
        self._vocab = vocab
        self._rank = {vocab.tokens[i]: rank for rank, i in enumerate(special)}
        visible = [i for i in special if not vocab.attributes[i] & hidden]
        self._groups = {
            True: _group_by_start([vocab.tokens[i] for i in special]),
            False: _group_by_start([vocab.tokens[i] for i in visible]),
        }

    def split(self, text: str, parse_special: bool) -> list[str | int]:
        """``text`` as pieces of plain text and ids, in order; no piece is empty.

        Without ``parse_special`` only user-defined tokens are recognised.
        """
        pieces: list[str | int] = [text] if text else []
        for token in self._occurring(text, self._groups[parse_special]):
            uncut, pieces = pieces, []
            for piece in uncut:
                if isinstance(piece, int):
                    pieces.append(piece)
                else:
                    pieces.extend(self._cut(piece, token))
        return pieces

    def _occurring(self, text: str, groups: dict[str, dict[int, set[str]]]) -> list[str]:
        """The tokens that are somewhere in ``text``, in order of precedence."""
        found: set[str] = set()
        for start, by_length in groups.items():
            missing = dict(by_length)
            at = text.find(start)
            while at >= 0 and missing:
                for length, tokens in by_length.items():
                    if length in missing and (token := text[at : at + length]) in tokens:
                        found.add(token)
                        if len(tokens) == 1:  # as in runs of spaces, one for each length
                            del missing[length]
                at = text.find(start, at + 1)
        return sorted(found, key=self._rank.__getitem__)

    def _cut(self, text: str, token: str) -> Iterator[str | int]:
        token_id = self._vocab.ids[token]
        attributes = self._vocab.attributes[token_id]
        start = 0
        while (at := text.find(token, start)) >= 0:
            left = text[start:at]
            if attributes & Attribute.LSTRIP:
                left = left.rstrip(_SPACE)
            if left:
                yield left
            yield token_id
            start = at + len(token)
            if attributes & Attribute.RSTRIP:
                start = _SPACES.match(text, start).end()  # type: ignore[union-attr]
        if start < len(text):
            yield text[start:]


def _group_by_start(tokens: list[str]) -> dict[str, dict[int, set[str]]]:
    """First characters -> length -> tokens: a vocabulary has thousands of special tokens,
    but few ways for them to begin."""
    groups: dict[str, dict[int, set[str]]] = {}
    for token in tokens:
        groups.setdefault(token[:_GROUP], {}).setdefault(len(token), set()).add(token)
    return groups
