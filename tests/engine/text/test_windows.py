"""A text that is cut into windows has the words, and the ids, of the whole."""

from __future__ import annotations

import functools
import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recorded_vocabularies import RECORDED, tokenizer_at, vocab_path

from gguf_serve.engine.errors import RequestError, TooManyTokensError
from gguf_serve.engine.text import unigram, windows
from gguf_serve.engine.text.bpe import word_splitter
from gguf_serve.engine.text.pretokenizers import PRETOKENIZERS
from gguf_serve.engine.text.tokenizer import load_tokenizer
from gguf_serve.engine.text.windows import settled

# What some pattern or other treats in its own way.
PARTS = [
    *" \n\t\r  aBcDZ12345²'’.,/!?:-_<>[]|中、，가あéÉ\u0301\u0e01😀\x1c\xa0\u3000",
    "<sentinel:12>", "IMGIMGABZ", "'re", "'S", "1234567", "    ", "\n\n", " the", "<b>",
]  # fmt: skip
RUNS = st.builds(str.__mul__, st.sampled_from(PARTS), st.sampled_from([1, 1, 2, 3, 7, 20]))
TEXTS = st.lists(RUNS, min_size=8, max_size=40).map("".join)
DISTINCT = {name: pre for name, pre in PRETOKENIZERS.items() if pre != PRETOKENIZERS["gpt-2"]}
NAMES = [*sorted({pre: name for name, pre in DISTINCT.items()}.values()), "gpt-2"]


@functools.cache
def splitter(pre: str) -> Any:
    return word_splitter(PRETOKENIZERS[pre]).pre_tokenize_str


def lengths(pre: str, text: str) -> list[int]:
    """Of the words; they stand for ids here."""
    return [end - start for _, (start, end) in splitter(pre)(text)]


@pytest.mark.parametrize("pre", NAMES)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, size=st.integers(9, 40))
@example(text=" " * 15 + "\u0301" + " " * 20 + "1", size=9)  # one word of deepseek-llm
@example(text="a, b " + "1" * 40 + " c", size=12)  # groups of digits from the right
@example(text="abc" * 4 + "<sentinel:" + "1" * 30 + "> 1", size=24)
@example(text="1 " + "É" * 30 + "a" * 9 + "ÉÉ1", size=14)  # where the case changes
@example(text="1 , " * 5 + " " * 30 + "\n" + " " * 9 + "a", size=14)
def test_words_of_windows_are_those_of_the_whole(pre: str, text: str, size: int) -> None:
    def encode_until(window: str, place: int) -> tuple[list[int], int]:
        starts = [start for _, (start, _) in splitter(pre)(window)]
        word = bisect_right(starts, place) - 1
        return lengths(pre, window)[:word], starts[word]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW", size)
        found = windows.windows(
            text, encode_until, lambda rest: lengths(pre, rest), PRETOKENIZERS[pre].runs
        )
        assert [length for part in found for length in part] == lengths(pre, text)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW", 24)
    monkeypatch.setattr(unigram, "WINDOW", 24)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("name", RECORDED)
def test_ids_of_windows_are_those_of_the_whole(shared: Path, name: str) -> None:
    tokenizer = tokenizer_at(vocab_path(shared, name))
    cases = json.loads((shared / "vocabs" / "random" / f"ggml-vocab-{name}.json").read_text())
    for case in cases:
        assert (case["text"], tokenizer.encode(case["text"])) == (case["text"], case["full"])
    # Longer ones, in which words meet that were in two texts.
    text = "".join(case["text"] for case in cases[:60])
    cut = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW", len(text))
        patch.setattr(unigram, "WINDOW", len(text))
        assert cut == tokenizer.encode(text)


def test_what_follows_decides_about_white_space_and_letters() -> None:
    rest = "12345678"  # as much as patterns look ahead
    assert settled("one two  " + rest) == len("one tw")
    assert settled("one, two" + rest) == len("one,")
    assert settled("one 22" + rest) == len("one 22")
    assert settled("one 22" + rest, ("L", "Z", "N")) == len("one")
    assert settled("two\x00\x00" + rest) == 0
    assert settled("a" * 100) == 0


@pytest.mark.parametrize("model", ["byte_level", "sentencepiece"])
def test_a_word_without_an_end_is_refused(model: str, request: pytest.FixtureRequest) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(model))
    longest = "hello " + "h" * (windows.MAX_WORD // 2)
    assert tokenizer.decode(tokenizer.encode(longest, add_special=False)) == longest
    with pytest.raises(RequestError, match="a run of more than 262144 characters"):
        tokenizer.encode("h" * (3 * windows.MAX_WORD))


def test_a_text_with_too_many_tokens_is_not_encoded_to_its_end(byte_level: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(byte_level)
    text = "o 1" * windows.WINDOW
    with pytest.raises(TooManyTokensError, match="more than 1000") as info:
        tokenizer.encode(text, most=1000)
    assert 1000 < info.value.n_tokens < len(text) // 2
    assert len(tokenizer.encode("h1", most=1)) == 2  # so that its exact number can be said
    assert tokenizer.first(text, 5) == tokenizer.encode(text)[:5]
    assert tokenizer.first("h1", 5) == tokenizer.encode("h1")
