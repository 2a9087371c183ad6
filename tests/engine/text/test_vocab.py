"""Which tokens have which role, by keys and by well-known texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gguf_serve.engine.text.vocab import Attribute, Vocab, assign_roles, assign_strips, read_vocab


def vocab_of(model: str, tokens: list[str], types: list[int], **keys: Any) -> Vocab:
    metadata = {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, dtype=np.int32),
    }
    vocab = read_vocab(metadata | {f"tokenizer.ggml.{key}": keys[key] for key in keys})
    assign_roles(vocab)
    return vocab


def test_roles_come_from_keys_before_defaults() -> None:
    tokens = [f"t{i}" for i in range(5)]
    assert vocab_of("llama", tokens, [1] * 5).roles == {"bos": 1, "eos": 2, "unknown": 0}
    assert vocab_of("llama", tokens, [1] * 5, eos_token_id=4).roles["eos"] == 4


@pytest.mark.parametrize("value", [5, 2**32 - 1])
def test_an_id_outside_the_vocabulary_counts_for_nothing(value: int) -> None:
    tokens = [f"t{i}" for i in range(5)]
    roles = vocab_of("llama", tokens, [1] * 5, eos_token_id=value, eot_token_id=value).roles
    assert roles["eos"] == 2
    assert "eot" not in roles


def test_defaults_outside_the_vocabulary_count_for_nothing() -> None:
    assert vocab_of("gpt2", ["a", "b"], [1, 1]).roles == {}


def test_ends_of_generation_are_found_by_text() -> None:
    tokens = ["a", "<|im_end|>", "<|endoftext|>", "<|eom_id|>", "<|fim_pad|>", "<eos", "b"]
    vocab = vocab_of("gpt2", tokens, [1] * 7, eos_token_id=6)
    assert vocab.eog_ids == {1, 2, 3, 4, 6}
    assert vocab.roles["eot"] == 1
    assert vocab.having(Attribute.CONTROL) == [1, 2, 3, 4]  # and no longer ordinary text


def test_a_key_keeps_the_text_from_being_a_role() -> None:
    vocab = vocab_of("gpt2", ["a", "<fim_prefix>", "b"], [1, 1, 1], fim_pre_token_id=2)
    assert vocab.fim().prefix == 2
    assert vocab.having(Attribute.CONTROL) == []


def test_harmony_ends_messages_without_ending_generation() -> None:
    tokens = ["<|end|>", "<|return|>", "<|call|>", "<|channel|>"]
    vocab = vocab_of("gpt2", tokens, [3] * 4)
    assert vocab.eog_ids == {1, 2}
    assert vocab.having(Attribute.USER_DEFINED) == [0, 3]
    assert vocab_of("gpt2", ["<|end|>", "x"], [3, 1]).eog_ids == {0}


def test_gemma_4_has_html_tags() -> None:
    vocab = vocab_of("gemma4", ["</s>", "<|tool_response>", "<eos>"], [1, 4, 3])
    assert vocab.eog_ids == {1, 2}
    assert vocab.attributes[0] == Attribute.NORMAL


def test_empty_and_odd_tokens_are_kept_apart() -> None:
    vocab = vocab_of("gpt2", ["a", "", "b"], [1, 0, 77])
    assert vocab.tokens == ["a", "[EMPTY_1]", "b"]
    assert list(vocab.attributes) == [Attribute.NORMAL, 0, 0]


def test_strips_go_by_the_name_of_the_model() -> None:
    tokens = ["<s>", "<|user|>", "</s>", "<mask>", "[MASK]"]
    types = [3, 3, 4, 3, 3]

    def stripping(attribute: Attribute, metadata: dict[str, str]) -> list[int]:
        vocab = vocab_of("llama", tokens, types)
        assign_strips(vocab, metadata)
        return vocab.having(attribute)

    assert stripping(Attribute.RSTRIP, {"general.name": "Phi-3 mini"}) == [1, 2, 3, 4]
    assert stripping(Attribute.RSTRIP, {"general.name": "other"}) == []
    assert stripping(Attribute.LSTRIP, {"general.architecture": "nomic-bert-moe"}) == [3]
    assert stripping(Attribute.LSTRIP, {"tokenizer.ggml.pre": "jina-v2-code"}) == [3]
    assert stripping(Attribute.LSTRIP, {"general.name": "Modern-BERT"}) == [4]
