"""Merging by score, against the definition."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gguf_serve.engine.text.spm import _merge_by_heap, _merge_by_scan, escaped_piece
from gguf_serve.engine.text.tokenizer import load_tokenizer


def merged(symbols: list[str], scores: dict[str, float]) -> list[str]:
    """The definition: merge the best pair, the leftmost of equals, until none is a token."""
    while True:
        pairs = [
            (-scores[symbols[i] + symbols[i + 1]], i)
            for i in range(len(symbols) - 1)
            if symbols[i] + symbols[i + 1] in scores
        ]
        if not pairs:
            return symbols
        _, i = min(pairs)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


# Few letters and few scores: many ties, and tokens that overlap themselves.
tokens = st.dictionaries(
    st.text("ab▁", min_size=2, max_size=6), st.sampled_from([-1.0, -2.0, -3.0]), max_size=20
)


@given(st.text("ab▁", max_size=40), tokens)
def test_both_ways_of_merging_keep_to_the_definition(text: str, scores: dict[str, float]) -> None:
    expected = merged(list(text), scores)
    get = dict(zip(scores, range(len(scores)), strict=True)).get
    by_id = [*scores.values(), float("-inf")]
    assert _merge_by_heap(list(text), get, by_id) == expected
    scanned = list(text)
    _merge_by_scan(scanned, get, by_id)
    assert scanned == expected


@given(st.text("ab ", max_size=120), tokens)
def test_word_by_word_is_all_at_once(text: str, scores: dict[str, float]) -> None:
    vocab = {"▁": -9.0, "a": -9.0, "b": -9.0} | scores
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(vocab),
        "tokenizer.ggml.scores": list(vocab.values()),
        "tokenizer.ggml.add_space_prefix": False,
    }
    tokenizer = load_tokenizer(metadata)
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    expected = merged(list(text.replace(" ", "▁")), vocab)
    assert ids == [list(vocab).index(symbol) for symbol in expected]
    again = tokenizer.encode(text, add_special=False, parse_special=False)
    assert again == ids  # from the cache


def test_pieces_have_spaces() -> None:
    assert escaped_piece("▁a▁é") == b" a \xc3\xa9"


def test_scores_decide(sentencepiece: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(sentencepiece)
    ids = tokenizer.encode("helo", add_special=False)
    # "▁h" and "el" come first, then "▁hel"; "lo" is never possible.
    assert [tokenizer.piece(i) for i in ids] == [b" hel", b"o"]


def test_characters_without_token_are_bytes(sentencepiece: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(sentencepiece)
    ids = tokenizer.encode("é€\n", add_special=False)
    assert ids[2:] == [3 + byte for byte in "€\n".encode()]
    assert tokenizer.decode(ids) == "é€\n"


def test_without_bytes_there_is_the_unknown_token() -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a"],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1],
    }
    assert load_tokenizer(metadata).encode("aé") == [1, 3, 4, 0, 0]
