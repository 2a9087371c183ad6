"""The tokenizer "hybriddna". Expected ids are llama.cpp's (llama-cpp-python 0.3.36), of a GGUF file
with this vocabulary."""

from __future__ import annotations

from typing import Any

import pytest

from gguf_serve.engine.text.dna import MARKER
from gguf_serve.engine.text.tokenizer import Tokenizer, load_tokenizer

WORDS = ["AC", "GT", "ACGT", "<dna>", "</dna>", "<oov>"]  # from 256 on
DNA = [letters + MARKER for letters in ("ACGTAC", "TTTTTT", "GAAAAA")]
CASES = {
    "ACGT": [258],
    "x<dna>ACGTACttttttg</dna>AC": [120, 259, 262, 263, 264, 260, 256],
    "<dna>NNNNNNACGTAC": [259, 261, 262],
    "<dna></dna>ACGTAC<dna>G": [259, 260, 258, 256, 259, 264],
    "</dna>A": [60, 47, 100, 110, 97, 62, 65],
    "<dna>é ACGTAC</dna>": [259, 261, 261, 260],
    "<dna>ACGTAC<dna>TTTTTT</dna>": [259, 262, 261, 261, 260],
}


def load(byte_level: dict[str, Any], tokens: list[str]) -> Tokenizer:
    named = {
        "model": "hybriddna", "tokens": [*byte_level["tokenizer.ggml.tokens"][:256], *tokens],
        "pre": "gpt-2", "merges": ["A C", "G T", "AC GT"],
    }  # fmt: skip
    return load_tokenizer({f"tokenizer.ggml.{key}": value for key, value in named.items()})


@pytest.mark.parametrize("text", CASES)
def test_six_letters_are_a_token(byte_level: dict[str, Any], text: str) -> None:
    tokenizer = load(byte_level, [*WORDS, *DNA])
    assert tokenizer.encode(text, add_special=False, parse_special=False) == CASES[text]


def test_pieces_are_letters(byte_level: dict[str, Any]) -> None:
    tokenizer = load(byte_level, [*WORDS, *DNA])
    assert tokenizer.decode([259, 262, 263, 260]) == "<dna>ACGTACTTTTTT</dna>"


def test_without_such_tokens_all_is_words(byte_level: dict[str, Any]) -> None:
    tokenizer = load(byte_level, WORDS[:3])
    assert tokenizer.encode("<dna>ACGT", add_special=False)[-1] == 258
