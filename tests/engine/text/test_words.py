from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from gguf_serve.engine.text.words import attached, remembering, word_pattern

TOKENS = ["▁a", "▁▁", "b", "<▁>", "]▁"]


def test_words_end_before_spaces() -> None:
    assert re.findall(word_pattern(attached(["▁a", "b"])), "a▁▁b▁c▁") == ["a", "▁▁b", "▁c", "▁"]


def test_characters_of_tokens_with_inner_spaces_keep_them() -> None:
    assert re.findall(word_pattern(attached(TOKENS)), "<▁▁a▁b]▁▁c▁") == ["<▁▁a", "▁b]▁▁c", "▁"]


@given(st.text(alphabet="▁ab<>]", max_size=30))
def test_words_cover_the_text_and_no_token_straddles_them(text: str) -> None:
    words = re.findall(word_pattern(attached(TOKENS)), text)
    assert "".join(words) == text
    ends = set()
    for word in words:
        ends.add(max(ends, default=0) + len(word))
    for token in TOKENS:
        for found in re.finditer(f"(?={re.escape(token)})", text):
            inside = range(found.start() + 1, found.start() + len(token))
            assert not ends & set(inside)


def test_short_words_are_encoded_once() -> None:
    """And what is given away is not what is kept."""
    asked = list[str]()

    def encode_word(word: str) -> list[int]:
        asked.append(word)
        return [len(word)]

    encode, long = remembering(encode_word), "b" * 33
    encode(["a", "a"]).append(7)
    assert encode(["a", long, "a", long]) == [1, 33, 1, 33]
    assert asked == ["a", long, long]
