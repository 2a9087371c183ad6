"""The likeliest segmentation, and the white space around it."""

from __future__ import annotations

from typing import Any

import pytest

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.text.tokenizer import load_tokenizer

TOKENS = [
    ("<pad>", 3, 0.0),
    ("</s>", 3, 0.0),
    ("<unk>", 2, 0.0),
    ("▁", 1, -3.0),
    ("a", 1, -4.0),
    ("b", 1, -4.0),
    ("ab", 1, -5.0),
    ("▁a", 1, -4.5),
    ("▁ab", 1, -9.5),
    ("<x>", 4, -50.0),
    ("ba", 5, -1.0),
]


def metadata(**keys: Any) -> dict[str, Any]:
    texts, types, scores = zip(*TOKENS, strict=True)
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": list(texts),
        "tokenizer.ggml.token_type": list(types),
        "tokenizer.ggml.scores": list(scores),
        "tokenizer.ggml.add_space_prefix": True,
    } | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def pieces(text: str, **keys: Any) -> list[str]:
    tokenizer = load_tokenizer(metadata(**keys))
    return [TOKENS[i][0] for i in tokenizer.encode(text, add_special=False)]


def test_the_sum_of_scores_decides() -> None:
    assert pieces("ab") == ["▁", "ab"]  # -8, before "▁a" "b" with -8.5
    assert pieces("aba") == ["▁a", "ba"]  # unused tokens match too


def test_unknown_characters_are_one_token() -> None:
    assert pieces("aéèa") == ["▁a", "<unk>", "a"]


def test_the_text_of_a_control_token_is_not_that_token() -> None:
    tokenizer = load_tokenizer(metadata())
    plain = tokenizer.encode("a<pad>", add_special=False, parse_special=False)
    assert plain == [7, 2, 4, 2]  # "<p" and "d>" are unknown
    assert tokenizer.encode("a<pad>", add_special=False) == [7, 0]


def test_spaces() -> None:
    assert pieces("a  a ") == ["▁a", "▁", "▁a", "▁"]
    assert pieces("a  a ", remove_extra_whitespaces=True) == ["▁a", "▁a"]
    assert pieces("  a") == ["▁", "▁", "▁a"]
    assert pieces("a", add_space_prefix=False) == ["a"]
    assert pieces("  ", remove_extra_whitespaces=True) == []
    assert pieces("  ") == ["▁", "▁"]


def test_each_piece_between_special_tokens_is_a_text_of_its_own() -> None:
    assert pieces("a<x>a") == ["▁a", "<x>", "▁a"]


def test_the_end_is_added_by_default() -> None:
    tokenizer = load_tokenizer(metadata())
    assert tokenizer.encode("a") == [7, 1]
    assert tokenizer.decode([7, 1]) == "a"


def test_scores_are_needed() -> None:
    with pytest.raises(ModelError, match="scores"):
        load_tokenizer(metadata(scores=None))
