"""RWKV's vocabularies (``tokenizer.ggml.model`` is "rwkv"): the longest token that begins here.

Tokens are bytes, which the file escapes: tab, newline and carriage return as backslash and t, n, r,
others as backslash, x and two hexadecimal digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from gguf_serve.engine.text.vocab import Vocab

_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_NAMED = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}
_AT_ONCE = 4096  # ids


def unescaped(token: str) -> bytes:
    """The bytes of a token as the file has it."""

    def byte(match: re.Match[bytes]) -> bytes:
        digits, other = match.groups()
        return bytes([int(digits, 16)]) if digits else _NAMED.get(other, other)

    return _ESCAPE.sub(byte, token.encode())


def longest_match_encoder(vocab: Vocab) -> Callable[[str], Iterator[list[int]]]:
    """Encoding of plain text. A byte that begins no token is the unknown token, or is lost."""
    ids = {unescaped(token): id for id, token in enumerate(vocab.tokens)}
    lengths = dict[bytes, set[int]]()  # of tokens, by their first two bytes
    for token in ids:
        lengths.setdefault(token[:2], set()).add(len(token))
    longest_first = {begin: sorted(found, reverse=True) for begin, found in lengths.items()}
    unknown = [vocab.roles["unknown"]] if "unknown" in vocab.roles else []

    def encode(text: str) -> Iterator[list[int]]:
        data, at, found = text.encode(), 0, list[int]()
        while at < len(data):
            for n in (*longest_first.get(data[at : at + 2], ()), 1):
                id = ids.get(data[at : at + n])
                if id is not None:
                    break
            found += unknown if id is None else [id]
            at += n
            if len(found) >= _AT_ONCE:
                yield found
                found = []
        yield found

    return encode
