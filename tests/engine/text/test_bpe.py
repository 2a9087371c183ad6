"""Merging by rank, in both alphabets."""

from __future__ import annotations

from typing import Any

import pytest

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.text.bpe import byte_level_piece
from gguf_serve.engine.text.tokenizer import load_tokenizer

TOKENS = "tokenizer.ggml.tokens"
MERGES = "tokenizer.ggml.merges"


def pieces(metadata: dict[str, Any], text: str) -> list[str]:
    tokenizer = load_tokenizer(metadata)
    return [tokenizer.piece(i).decode() for i in tokenizer.encode(text, add_special=False)]


def with_tokens(metadata: dict[str, Any], tokens: list[str], merges: list[str]) -> dict[str, Any]:
    types = [*metadata["tokenizer.ggml.token_type"], *([1] * len(tokens))]
    scores = [0.0] * len(types)
    return metadata | {
        TOKENS: [*metadata[TOKENS], *tokens],
        MERGES: [*metadata[MERGES], *merges],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
    }


def test_pieces_of_the_byte_alphabet() -> None:
    assert byte_level_piece("Ġw") == b" w"
    assert byte_level_piece("Ċĉ") == b"\n\t"
    assert byte_level_piece("Ã") == b"\xc3"
    assert byte_level_piece("ĀŃ") == b"\x00\xad"
    assert byte_level_piece("\u200d") == b"\xe2\x80\x8d"  # not in the alphabet: itself


def test_merges_happen_by_rank_within_words(byte_level: dict[str, Any]) -> None:
    assert pieces(byte_level, "hell world") == ["hell", " w", "o", "r", "l", "d"]
    assert pieces(byte_level, "hello") == ["hell", "o"]


def test_the_first_of_equal_merges_counts(byte_level: dict[str, Any]) -> None:
    # a b: rank 4, before b c; as the last one it would come after it.
    metadata = with_tokens(byte_level, ["ab", "bc"], ["a b", "b c", "a b"])
    assert pieces(metadata, "abc") == ["ab", "c"]


def test_a_word_that_is_a_token_needs_no_merges_where_so_said(byte_level: dict[str, Any]) -> None:
    metadata = with_tokens(byte_level, ["xyz"], [])
    assert pieces(metadata, "xyz") == ["x", "y", "z"]
    assert pieces(metadata | {"tokenizer.ggml.pre": "llama-bpe"}, "xyz") == ["xyz"]


def test_a_merge_without_a_token_is_spelled(byte_level: dict[str, Any]) -> None:
    metadata = byte_level | {MERGES: [*byte_level[MERGES], "q u", "qu x"]}
    assert pieces(metadata, "quxy") == ["q", "u", "x", "y"]


def test_a_byte_without_a_token_separates_and_is_lost(byte_level: dict[str, Any]) -> None:
    tokens = [f"[{i}]" if token == "X" else token for i, token in enumerate(byte_level[TOKENS])]
    assert pieces(byte_level | {TOKENS: tokens}, "hXe") == ["h", "e"]


def test_a_merge_that_is_no_pair_is_refused(byte_level: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="' x' is not a pair"):
        load_tokenizer(byte_level | {MERGES: ["h e", " x"]})


@pytest.fixture
def gemma() -> dict[str, Any]:
    """SentencePiece's alphabet with merges; bytes from 3 on."""
    pieces = ["▁", "a", "b", "\n", "▁a", "▁▁", "\n\n", "ab", ">▁<", ">", "<", ">▁"]
    tokens = ["<pad>", "<eos>", "<bos>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return {
        "tokenizer.ggml.model": "gemma4",
        TOKENS: tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, *([6] * 256), *([1] * len(pieces))],
        MERGES: ["▁ ▁", "▁ a", "a b", "> ▁", ">▁ <"],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }


def test_escaped_spaces_and_bytes(gemma: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(gemma)
    ids = tokenizer.encode(" a  ab é", add_special=False)
    assert [tokenizer.piece(i) for i in ids] == [b" a", b"  ", b"ab", b" ", b"\xc3", b"\xa9"]
    assert tokenizer.decode(ids) == " a  ab é"


def test_gemma_4_always_begins_with_bos(gemma: dict[str, Any]) -> None:
    assert load_tokenizer(gemma).encode("a")[0] == 2


def test_newlines_are_tokens_without_merges(gemma: dict[str, Any]) -> None:
    assert pieces(gemma, "a\n\nb\n\n\na") == ["a", "\n\n", "b", "\n", "\n", "\n", "a"]


def test_tokens_with_a_space_inside_are_not_cut(gemma: dict[str, Any]) -> None:
    assert pieces(gemma, "b> <a") == ["b", "> <", "a"]
    assert pieces(gemma, ">  a") == [">", "  ", "a"]
