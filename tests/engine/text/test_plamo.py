"""PLaMo 2's tokenizer. Expected ids are llama.cpp's (llama-cpp-python 0.3.36), of a GGUF file with
this vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.text.tokenizer import Tokenizer, load_tokenizer

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # types of tokens
NAN = float("nan")
SPECIAL = [("<unk>", UNKNOWN, 0.0), ("<bos>", CONTROL, 0.0), ("<eos>", CONTROL, 0.0)]
BYTES = [(f"<0x{byte:02X}>", BYTE, 0.0) for byte in range(256)]
WORDS = [
    ("a", -2.0), ("b", -2.0), ("ab", -3.5), ("abc", -3.0), ("bcd", -1.0), ("c", -4.0), ("d", -2.0),
    (" ", -1.0), (" ab", -4.0), ("b ", -2.00004), ("日本", -3.0), ("日", -2.0), ("本語", -1.5),
    ("\n", -0.5), ("d\n", -2.5), ("never", NAN), ("ne", -1.0), ("ver", -1.00006), ("nev", -1.00004),
    ("er", -1.00002),
]  # fmt: skip
TOKENS = [*SPECIAL, *BYTES, *((text, NORMAL, score) for text, score in WORDS)]
CASES = {
    "abcd": [259, 263],
    "abab": [261, 261],
    " ab": [267],
    "ab ab": [261, 267],
    "b b": [268, 260],
    "日本語": [270, 271],
    "日本": [269],
    "a日本x語": [259, 269, 123, 235, 173, 161],
    "\nd\n\nd": [272, 273, 272, 265],
    "never": [277, 278],
    "neverne": [277, 278, 275],
    "é": [198, 172],
    "𝄞a": [243, 160, 135, 161, 259],
    "\ufeffab": [261],
    "x\ufeffy": [123, 242, 190, 194, 124],
    "zabcz": [125, 262, 125],
    "abcabcd": [262, 259, 263],
    "aaab  bcd": [259, 259, 259, 268, 266, 263],
}


def load(tokens: list[tuple[str, int, float]] = TOKENS, **keys: Any) -> Tokenizer:
    texts, types, scores = zip(*tokens, strict=True)
    named = {"tokens": list(texts), "token_type": np.array(types), "scores": np.array(scores)}
    listed = {"model": "plamo2"} | named | keys
    return load_tokenizer({f"tokenizer.ggml.{key}": value for key, value in listed.items()})


@pytest.mark.parametrize("text", CASES)
def test_the_best_score_counts(text: str) -> None:
    assert load().encode(text, parse_special=False) == CASES[text]


def test_control_tokens_in_a_text_are_text() -> None:
    """Which llama.cpp takes for what they are called, whether asked to or not."""
    tokenizer = load()
    assert tokenizer.encode("<bos>a", parse_special=True) == [1, 259]
    assert tokenizer.encode("<bos>a", parse_special=False)[0] == 3 + ord("<")


def test_no_token_is_added_at_the_ends() -> None:
    assert load(add_bos_token=True, add_eos_token=True).encode("a") == load().encode("a")


def test_texts_come_back() -> None:
    tokenizer = load()
    for text in CASES:
        found = tokenizer.decode(tokenizer.encode(text, parse_special=False))
        assert found == text.removeprefix("\ufeff")


def test_long_texts_are_encoded_in_parts() -> None:
    """Which are cut where no token goes over, so that nothing changes."""
    tokenizer = load()
    parts = list(tokenizer.parts("abcd ab\n" * 20_000))
    assert len(parts) > 3
    assert [id for part in parts for id in part] == tokenizer.encode("abcd ab\n") * 20_000


def test_a_vocabulary_without_a_byte_is_refused() -> None:
    with pytest.raises(ModelError, match="a token for each byte, not all but 65"):
        load([token for token in TOKENS if token[0] != "<0x41>"])
