"""Small vocabularies, complete enough to encode any text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# GPT-2's character for each byte, from its published table.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
CHARACTERS = [chr(b) if b in _PRINTABLE else chr(256 + _OTHERS.index(b)) for b in range(256)]


def metadata_of(model: str, tokens: list[tuple[str, int, float]], **keys: Any) -> dict[str, Any]:
    """Metadata with ``tokens`` as (text, type, score) and further ``tokenizer.ggml`` keys."""
    texts, types, scores = zip(*tokens, strict=True)
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": list(texts),
        "tokenizer.ggml.token_type": np.array(types, dtype=np.int32),
        "tokenizer.ggml.scores": np.array(scores, dtype=np.float32),
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


@pytest.fixture
def byte_level() -> dict[str, Any]:
    """256 bytes (token i is byte i), four merges, three special tokens from 260 on."""
    merges = ["h e", "l l", "Ġ w", "he ll"]
    tokens = [(character, NORMAL, 0.0) for character in CHARACTERS]
    tokens += [(merge.replace(" ", ""), NORMAL, 0.0) for merge in merges]
    tokens += [("<|im_start|>", CONTROL, 0.0), ("<|im_end|>", CONTROL, 0.0)]
    tokens += [("<tool>", USER_DEFINED, 0.0)]
    return metadata_of(
        "gpt2", tokens, pre="gpt-2", merges=merges, bos_token_id=260, eos_token_id=261
    )


@pytest.fixture
def sentencepiece() -> dict[str, Any]:
    """<unk>, <s>, </s>, 256 bytes (token 3 + i is byte i), then pieces by falling score."""
    tokens = [("<unk>", UNKNOWN, 0.0), ("<s>", CONTROL, 0.0), ("</s>", CONTROL, 0.0)]
    tokens += [(f"<0x{byte:02X}>", BYTE, 0.0) for byte in range(256)]
    pieces = ["▁h", "el", "lo", "▁hel", "▁hello", "▁", "h", "e", "l", "o", "▁▁", "é"]
    tokens += [(piece, NORMAL, -float(i)) for i, piece in enumerate(pieces)]
    tokens += [("<|user|>", CONTROL, 0.0), ("<b>", USER_DEFINED, 0.0)]
    return metadata_of("llama", tokens)
