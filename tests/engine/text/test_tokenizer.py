"""The tokenizer as a whole: against recorded ids, and on small vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_vocabularies import RECORDED, tokenizer_at, vocab_path

from gguf_serve.engine.errors import ModelError, RequestError
from gguf_serve.engine.text.tokenizer import load_tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.mark.parametrize("name", RECORDED)
def test_random_texts_have_the_recorded_ids(shared: Path, name: str) -> None:
    tokenizer = tokenizer_at(vocab_path(shared, name))
    cases = json.loads((shared / "vocabs" / "random" / f"ggml-vocab-{name}.json").read_text())
    assert len(cases) > 100
    for case in cases:
        text = case["text"]
        plain = tokenizer.encode(text, add_special=False, parse_special=False)
        assert (text, plain) == (text, case["plain"])
        assert (text, tokenizer.encode(text)) == (text, case["full"])


@pytest.mark.parametrize("name", RECORDED)
def test_hand_made_texts_have_the_recorded_ids(shared: Path, name: str) -> None:
    path = vocab_path(shared, name)
    inputs, outputs = Path(f"{path}.inp"), Path(f"{path}.out")
    if not inputs.exists():
        pytest.skip(f"{inputs.name} is not among the recorded texts")
    texts = inputs.read_bytes().decode().split(SEPARATOR)
    lines = outputs.read_text().split("\n")
    # Of the last text only the beginning of its separator may have been cut off.
    assert 40 < len(texts) <= len(lines) <= len(texts) + 1
    tokenizer = tokenizer_at(path)
    for text, line in zip(texts, lines, strict=False):
        got = tokenizer.encode(text, add_special=False, parse_special=False)
        assert (text, got) == (text, [int(i) for i in line.split()])


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "deepseek-llm"])
@settings(max_examples=150, deadline=None)
@given(text=st.text())
def test_byte_level_text_survives_a_round_trip(shared: Path, name: str, text: str) -> None:
    tokenizer = tokenizer_at(vocab_path(shared, name))
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.decode(ids) == text
    decoder = tokenizer.decoder()
    assert "".join(decoder.push(i) for i in ids) + decoder.flush() == text


@settings(max_examples=150, deadline=None)
@given(text=st.text().filter(lambda text: "▁" not in text))
def test_sentencepiece_text_survives_a_round_trip(shared: Path, text: str) -> None:
    tokenizer = tokenizer_at(vocab_path(shared, "llama-spm"))
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("name", "eos", "eot", "ends"),
    [
        ("llama-bpe", "<|end_of_text|>", "<|eot_id|>", {"<|end_of_text|>", "<|eot_id|>"}),
        ("gemma-4", "<eos>", None, {"<eos>", "<turn|>", "<|tool_response>"}),
        ("phi-3", "<|endoftext|>", None, {"<|endoftext|>", "<|end|>", "</s>"}),
        ("llama-spm", "</s>", None, {"</s>"}),
    ],
)
def test_roles_of_real_vocabularies(
    shared: Path, name: str, eos: str, eot: str | None, ends: set[str]
) -> None:
    tokenizer = tokenizer_at(vocab_path(shared, name))
    assert {tokenizer.piece(i).decode() for i in tokenizer.eog_ids} >= ends
    assert tokenizer.eos_id in tokenizer.eog_ids
    assert tokenizer.eos_id is not None
    assert tokenizer.piece(tokenizer.eos_id).decode() == eos
    if eot is not None:
        assert tokenizer.eot_id is not None
        assert tokenizer.piece(tokenizer.eot_id).decode() == eot


def test_fill_in_the_middle_tokens(shared: Path) -> None:
    fim = tokenizer_at(vocab_path(shared, "starcoder")).fim
    assert (fim.prefix, fim.middle, fim.suffix, fim.pad) == (1, 2, 3, 4)
    assert fim.separator is None


def test_special_tokens_are_parsed_only_on_request(byte_level: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(byte_level)
    assert tokenizer.encode("<|im_start|>hell<|im_end|>") == [260, 259, 261]
    plain = tokenizer.encode("<|im_start|>", parse_special=False)
    assert 260 not in plain
    assert tokenizer.decode(plain) == "<|im_start|>"
    # A user-defined token is part of the text, whoever wrote it.
    assert tokenizer.encode("<tool>", parse_special=False) == [262]


def test_bos_and_eos_are_added_as_the_file_says(byte_level: dict[str, Any]) -> None:
    byte_level |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    tokenizer = load_tokenizer(byte_level)
    assert (tokenizer.add_bos, tokenizer.add_eos) == (True, True)
    assert tokenizer.encode("he") == [260, 256, 261]
    assert tokenizer.encode("") == [260, 261]
    assert tokenizer.encode("he", add_special=False) == [256]


def test_special_tokens_are_hidden_on_request(byte_level: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(byte_level)
    assert [tokenizer.is_special(i) for i in (259, 260, 261, 262)] == [False, True, True, False]
    assert tokenizer.piece(260) == b"<|im_start|>"
    assert tokenizer.piece(260, special=False) == b""
    assert tokenizer.decode([260, 259, 262, 261]) == "hell<tool>"
    assert tokenizer.decode([260, 259], special=True) == "<|im_start|>hell"


def test_a_space_is_put_before_text_and_taken_away(sentencepiece: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(sentencepiece)
    ids = tokenizer.encode("hello", add_special=False)
    assert [tokenizer.piece(i) for i in ids] == [b" hello"]
    assert tokenizer.decode(ids) == "hello"
    # After a special token a new text begins; only the first token of all loses its space.
    ids = tokenizer.encode("hello<|user|>hello", add_special=False)
    assert [tokenizer.piece(i) for i in ids] == [b" hello", b"<|user|>", b" hello"]
    assert tokenizer.decode(ids) == "hello hello"
    assert tokenizer.decoder().push(ids[0]) == " hello"


def test_no_space_is_added_where_the_file_says_so(sentencepiece: dict[str, Any]) -> None:
    sentencepiece["tokenizer.ggml.add_space_prefix"] = False
    tokenizer = load_tokenizer(sentencepiece)
    ids = tokenizer.encode(" hello", add_special=False)
    assert [tokenizer.piece(i) for i in ids] == [b" hello"]
    assert tokenizer.decode(ids) == " hello"


def test_ids_outside_the_vocabulary_are_refused(byte_level: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(byte_level)
    for token_id in (-1, tokenizer.n_vocab):
        with pytest.raises(RequestError, match=f"{token_id} is not one of 263 tokens"):
            tokenizer.piece(token_id)
        with pytest.raises(RequestError):
            tokenizer.is_special(token_id)


def test_a_lone_surrogate_is_refused(byte_level: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"U\+D83D at character 2"):
        load_tokenizer(byte_level).encode("he\ud83d")


def test_a_file_without_tokenizer_has_a_stand_in() -> None:
    metadata = {
        "general.architecture": "llama",
        "llama.vocab_size": 256,
        "tokenizer.ggml.model": "no_vocab",
    }
    tokenizer = load_tokenizer(metadata)
    assert (tokenizer.n_vocab, tokenizer.bos_id, tokenizer.eog_ids) == (256, None, frozenset())
    assert tokenizer.decode([0, 255]) == ""
    with pytest.raises(RequestError, match="no tokenizer"):
        tokenizer.encode("hello")
    with pytest.raises(ModelError, match=r"llama\.vocab_size"):
        load_tokenizer({k: v for k, v in metadata.items() if k != "llama.vocab_size"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "morse", "unknown tokenizer.ggml.model 'morse'"),
        ("model", None, "unknown tokenizer.ggml.model None"),
        ("pre", "morse", "unknown tokenizer.ggml.pre 'morse'"),
        ("merges", None, "merges is missing"),
        ("merges", ["he"], "'he' is not a pair"),
        ("tokens", None, "tokens is missing"),
        ("tokens", ["a", "b", "a"], "'a' has the ids 0 and 2"),
        ("token_type", [1, 1], "2 entries for 263 tokens"),
        ("scores", [0.0], "1 entries for 263 tokens"),
        ("scores", ["a"] * 263, "expected a list of numbers"),
    ],
)
def test_broken_metadata_is_refused_by_name(
    byte_level: dict[str, Any], key: str, value: object, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_tokenizer(byte_level | {f"tokenizer.ggml.{key}": value})


def test_adding_a_token_that_is_not_named_is_refused() -> None:
    metadata = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": ["a"],
        "tokenizer.ggml.merges": [],
    }
    with pytest.raises(ModelError, match="adds a bos token"):
        load_tokenizer(metadata)


@pytest.mark.parametrize(("lower", "text"), [(False, "ab c\tab\u3000c"), (True, "AB  c\nAb C")])
def test_white_space_is_dropped(lower: bool, text: str) -> None:
    """The model "whitespace", of words in letters that stand for themselves."""
    tokenizer = load_tokenizer(
        {
            "tokenizer.ggml.model": "whitespace",
            "tokenizer.ggml.pre": "whitespace",
            "tokenizer.ggml.tokens": ["a", "b", "c", "ab"],
            "tokenizer.ggml.merges": ["a b"],
            "tokenizer.ggml.normalizer.lowercase": lower,
        }
    )
    assert tokenizer.encode(text, add_special=False) == [3, 2, 3, 2]
