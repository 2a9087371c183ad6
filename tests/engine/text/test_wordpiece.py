"""BERT's words and their pieces."""

from __future__ import annotations

from typing import Any

import pytest

from gguf_serve.engine.text.tokenizer import load_tokenizer
from gguf_serve.engine.text.wordpiece import Normalization


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,World!", ["hello", ",", "world", "!"]),
        ("a\u00a0b\u3000c\nd", ["a", "b", "c", "d"]),
        ("a\u200bb\x00c\ufffdd", ["abcd"]),  # format and control characters vanish
        ("Été e\u0301 İ", ["ete", "e", "i"]),
        ("漢字kana", ["漢", "字", "kana"]),
        ("1+1=2 €5", ["1", "+", "1", "=", "2", "€5"]),  # only ASCII symbols stand alone
        ("가", ["\u1100"]),  # decomposed, of which the first code point is left
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert text.translate(Normalization(True, True)).split() == expected


def test_case_and_accents_can_be_kept() -> None:
    assert "É e\u0301".translate(Normalization(False, False)) == "É e\u0301"
    assert "É e\u0301".translate(Normalization(True, False)) == "é e\u0301"
    assert "É e\u0301".translate(Normalization(False, True)) == "E e"


@pytest.fixture
def bert() -> dict[str, Any]:
    words = ["▁un", "▁unit", "ed", "ab", "able", "▁a", "▁,", "▁"]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words],
        "tokenizer.ggml.token_type": [3, 3, 3, 3, *([1] * len(words))],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.seperator_token_id": 3,
    }


def test_the_longest_piece_comes_first(bert: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(bert)
    ids = tokenizer.encode("United unable, A", add_special=False)
    assert [tokenizer.piece(i) for i in ids] == [b" unit", b"ed", b" un", b"able", b" ,", b" a"]


def test_a_word_with_an_unknown_part_is_unknown_as_a_whole(bert: dict[str, Any]) -> None:
    assert load_tokenizer(bert).encode("unx a", add_special=False) == [1, 9]


def test_class_and_separator_enclose_the_text(bert: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(bert)
    assert tokenizer.encode("a") == [2, 9, 3]
    assert tokenizer.encode("") == [2, 3]
    assert tokenizer.encode("a[SEP]a") == [2, 9, 3, 9, 3]


def test_a_long_word_may_be_made_of_pieces(bert: dict[str, Any]) -> None:
    ids = load_tokenizer(bert).encode("un" + "ab" * 5000, add_special=False)
    assert ids == [4, *([7] * 5000)]
