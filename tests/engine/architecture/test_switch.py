"""Which of a model's own adapters is on, by the tokens so far."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_serve.engine.architecture.switch import Switch

SWITCH = Switch((90, 91, 92), (5, 6, 7), gain=15.0, n_vocab=100)


def on(tokens: list[int], start: int = 0) -> list[int]:
    """Of each token from ``start`` on, the number of its adapter, or 0."""
    scales = SWITCH.scales(tokens, start, len(tokens) - start)
    assert scales.sum(axis=1).max(initial=0) <= 1
    return [int(n) for n in scales @ np.arange(1, 4)]


def test_a_token_turns_its_adapter_on() -> None:
    assert on([1, 2, 91, 3, 4]) == [0, 0, 2, 2, 2]


def test_several_are_averaged_as_attention_does() -> None:
    assert on([90, 92, 1]) == [1, 2, 2]
    assert on([90, 91]) == [1, 2]  # 1.5 is rounded up


@pytest.mark.parametrize("start", range(6))
def test_a_chunk_knows_what_is_before_it(start: int) -> None:
    tokens = [1, 90, 2, 92, 3, -70000]  # the last is the place of an image
    assert on(tokens, start) == on(tokens)[start:]


def test_these_tokens_have_the_embeddings_of_others() -> None:
    assert SWITCH.embedded[[1, 90, 92]].tolist() == [1, 5, 7]
