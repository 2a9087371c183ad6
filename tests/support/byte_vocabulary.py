"""Not a test: a vocabulary for grammars. A token for each byte, some words, and controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gguf_serve.engine.grammar.guide import Guide

WORDS = [b"true", b'{"', b'": ', b"\n\n", b"<tool>\n{", b"an</think>\n", b"</think>{", b"<think>"]
EOS, CONTROL = 256 + len(WORDS), 257 + len(WORDS)  # the latter is written <|call|>
N_VOCAB = 300  # more logits than tokens


class ByteVocabulary:
    n_vocab = CONTROL + 1
    eog_ids = frozenset({EOS})
    pieces = [*(bytes([i]) for i in range(256)), *WORDS, b"</s>", b"<|call|>"]  # noqa: RUF012

    def is_special(self, id: int, /) -> bool:
        return id in (EOS, CONTROL)

    def piece(self, id: int, /) -> bytes:
        return self.pieces[id]

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        if text.encode() in WORDS:
            return [self.pieces.index(text.encode())]
        before, control, after = text.partition("<|call|>") if parse_special else (text, "", "")
        return [*before.encode(), *([CONTROL] if control else []), *after.encode()]

    def spell(self, *parts: str | int) -> list[int]:
        """A token for each byte of the texts; numbers are tokens."""
        tokens: list[int] = []
        for part in parts:
            tokens += [part] if isinstance(part, int) else part.encode()
        return tokens


def allowed(guide: Guide) -> set[int]:
    """The tokens that may come next."""
    if not guide.constrains:
        return set(range(CONTROL + 1))
    words = np.zeros(-(-N_VOCAB // 32), np.int32)
    guide.fill(words)
    return {int(i) for i in np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))}


def follow(guide: Guide, tokens: Sequence[int]) -> None:
    """Accept tokens, all of which must be allowed."""
    for i, token in enumerate(tokens):
        assert token in allowed(guide), f"token {i} of {tokens}: {token} is not allowed"
        guide.accept(token)
