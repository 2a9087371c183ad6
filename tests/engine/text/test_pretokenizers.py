"""Words of the pre-tokenizers; expectations were recorded from llama.cpp's splits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_serve.engine.text.bpe import word_splitter
from gguf_serve.engine.text.pretokenizers import PRETOKENIZERS


def words(pre: str, text: str) -> list[str]:
    pieces = word_splitter(PRETOKENIZERS[pre]).pre_tokenize_str(text)
    return [word for word, _ in pieces]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "I'll  go\n\n12", ["I", "'ll", " ", " go", "\n", "\n", "12"]),
        ("gpt-2", "IT'S a1", ["IT", "'", "S", " a", "1"]),
        ("llama-bpe", "IT'S 12345\r\n x", ["IT", "'S", " ", "123", "45", "\r\n", " x"]),
        ("llama-bpe", "a!!\n\nb", ["a", "!!\n\n", "b"]),
        ("qwen2", "x 123", ["x", " ", "1", "2", "3"]),
        ("qwen35", "हिन्दी e\u0301a", ["हिन्दी", " e\u0301a"]),
        ("starcoder", "a12 b", ["a", "1", "2", " b"]),
        ("falcon", "a+b `1234", ["a", "+", "b", " ", "`", "123", "4"]),
        # Its third pattern has the ASCII letters among the punctuation.
        ("deepseek-llm", "été漢字 12\u3000!", ["é", "t", "é", "漢字", " ", "12", "\u3000!"]),
        ("deepseek-coder", "a1\n b", ["a", "1", "\n", " b"]),
        ("deepseek-v3", "ab12345 漢字c.Foo", ["ab", "123", "45", " ", "漢字", "c", ".Foo"]),
        ("tekken", "fooBAR9", ["foo", "BAR", "9"]),
        ("gpt-4o", "FooBar's 1234/", ["Foo", "Bar's", " ", "123", "4", "/"]),
        ("bloom", "a b, c", ["a", " b", ",", " c"]),
        ("viking", "ab12", ["ab", "1", "2"]),
        ("tiny_aya", "a1234567 b", ["a", "1", "234", "567", " b"]),
        ("tiny_aya", "$100", ["$", "100"]),
        ("superbpe", "12345 1²345", ["12", "345", " ", "1²", "345"]),
        ("afmoe", "x  1234", ["x", " ", " ", "1", "234"]),
        ("kimi-k2", "ab漢字cd's", ["ab", "漢字", "cd's"]),
        ("exaone-moe", "a b c1", ["a b c", "1"]),
        ("seed-coder", "a!\n", ["a", "!", "\n"]),
        ("ufakzeka", "Ali'nin", ["Ali", "'nin"]),
        ("jais-2", "a     b", ["a", "    ", " b"]),
        ("chameleon", "a    b", ["a", "    ", "b"]),
        ("", "a<=b 12345", ["a", "<=", "b", " ", "123", "45"]),
    ],
)
def test_words(pre: str, text: str, expected: list[str]) -> None:
    assert words(pre, text) == expected


@pytest.mark.parametrize("pre", sorted(PRETOKENIZERS))
@settings(max_examples=20, deadline=None)
@given(text=st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n1aA'."))))
def test_no_character_is_lost(pre: str, text: str) -> None:
    assert "".join(words(pre, text)) == text


@given(st.integers(0, 40), st.sampled_from(["", "x", "²", " "]), st.sampled_from(["", "x", "²"]))
def test_numbers_are_grouped_from_the_right(n_digits: int, before: str, after: str) -> None:
    digits = "7" * n_digits
    groups = [word for word in words("superbpe", before + digits + after) if "7" in word]
    assert "".join(group.strip("x² ") for group in groups) == digits
    assert all(len(group.strip("x² ")) == 3 for group in groups[1:])


# What llama.cpp (of llama-cpp-python 0.3.36) knows.
NAMES = (
    "a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe "
    "command-r dbrx deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone "
    "exaone-moe exaone4 f2llmv2 falcon falcon-h1 falcon3 gemma4 gigachat glm4 glm5 gpt-2 "
    "gpt-4o gpt3-finnish granite-docling granite-embed-multi-311m granite-embed-multi-97m "
    "grok-2 hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code "
    "jina-v2-de jina-v2-es jina-v5-nano joyai-llm kanana2 kimi-k2 kormo laguna lfm2 "
    "llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0 minerva-7b "
    "minicpm5 minimax-m2 modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact "
    "roberta-bpe sarvam-moe seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 "
    "starcoder superbpe talkie tekken tiny_aya trillion ufakzeka viking whitespace youtu "
)


def test_every_name_is_known() -> None:
    assert not set(NAMES.split()) - set(PRETOKENIZERS)


def test_glm_takes_a_word_that_is_a_token_as_it_is() -> None:
    assert PRETOKENIZERS["glm4"].ignore_merges
    assert PRETOKENIZERS["glm5"] == PRETOKENIZERS["glm4"]
    assert not PRETOKENIZERS["chatglm-bpe"].ignore_merges
