"""The longest token of RWKV's escaped vocabulary."""

from __future__ import annotations

from typing import Any

import pytest

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.text.rwkv import unescaped
from gguf_serve.engine.text.tokenizer import Tokenizer, load_tokenizer

TOKENS = ["<s>", "a", "ab", "abcd", "b", r"\n", r"\x00\xff", r"\\", " ", "é", r"\xc3", r"\t\'"]


def load(**keys: Any) -> Tokenizer:
    named = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return load_tokenizer({"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": TOKENS} | named)


def test_escapes() -> None:
    assert [unescaped(token) for token in TOKENS[5:8]] == [b"\n", b"\x00\xff", b"\\"]
    assert unescaped(TOKENS[11]) == b"\t'"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("abcd", [3]), ("abc", [2]), ("aab\n", [1, 2, 5]), ("\\é b", [7, 9, 8, 4]), ("ã", [10])],
)
def test_the_longest_token_counts(text: str, expected: list[int]) -> None:
    tokenizer = load()
    assert tokenizer.encode(text, add_special=False) == expected


def test_unknown_bytes() -> None:
    """The unknown token for each byte that begins none, if there is such a token."""
    assert load(unknown_token_id=0).encode("zaã", add_special=False) == [0, 1, 10, 0]
    assert load().encode("za", add_special=False) == [1]


def test_long_texts_are_whole() -> None:
    assert load().encode("ab" * 10_000, add_special=False) == [2] * 10_000


def test_pieces_are_bytes() -> None:
    tokenizer = load()
    assert tokenizer.piece(6) == b"\x00\xff"
    assert tokenizer.decode([3, 5, 9]) == "abcd\né"


@pytest.mark.parametrize("model", ["test"])
def test_others_are_refused_by_name(model: str) -> None:
    with pytest.raises(ModelError, match=f"tokenizer.ggml.model '{model}'"):
        load_tokenizer({"tokenizer.ggml.model": model, "tokenizer.ggml.tokens": TOKENS})
