"""What a request rules out, with any chain of samplers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from drawing import answer, make

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.sampling_params import SamplingParams, TokenRules

N_VOCAB = 32
END, STOP = 31, 30  # the likeliest, and the next
ROW = np.arange(N_VOCAB, dtype=np.float32)
CHAINS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1e-3, "top_k": 0, "top_p": 1.0, "min_p": 0.0},  # the whole row
    {"temperature": 1e-3, "mirostat": 2},
    {"temperature": 1e-3, "repeat_penalty": 1.0001},
]


def written(chain: dict[str, Any], rules: TokenRules, n: int, prompt: Sequence[int] = ()) -> Any:
    """The n tokens that are drawn of the same row, END among those that end."""
    sampler = make(
        SamplingParams(seed=1, **chain),
        n_vocab=N_VOCAB, prompt=tuple(prompt), eog_ids=frozenset({END}), rules=rules,
    )  # fmt: skip
    found = []
    for _ in range(n):
        token = sampler.sample(answer(sampler.needs(), ROW)).token
        sampler.accept(token)
        found.append(token)
    return found


@pytest.mark.parametrize("chain", CHAINS)
def test_nothing_ends_before_so_many_tokens(chain: dict[str, Any]) -> None:
    rules = TokenRules(min_tokens=2, stop_ids=frozenset({STOP}))
    assert written(chain, rules, 3) == [29, 29, END]


@pytest.mark.parametrize("chain", CHAINS)
def test_bad_words(chain: dict[str, Any]) -> None:
    assert written(chain, TokenRules(bad_words=((END,),)), 2) == [STOP, STOP]
    pair = TokenRules(bad_words=((END, END),))
    assert written(chain, pair, 4) == [END, STOP, END, STOP]
    three = TokenRules(bad_words=((END, END, END), (END, END, STOP)))
    assert written(chain, three, 4) == [END, END, 29, END]


def test_only_what_is_written_makes_a_bad_word() -> None:
    """Not the prompt, as in vLLM."""
    assert written(CHAINS[0], TokenRules(bad_words=((3, END),)), 1, prompt=[3]) == [END]


@pytest.mark.parametrize("chain", CHAINS)
def test_allowed_tokens_are_the_only_ones(chain: dict[str, Any]) -> None:
    assert written(chain, TokenRules(allowed=(4, 7, 7)), 2) == [7, 7]
    biased = chain | {"logit_bias": ((4, 9.0), (9, 90.0))}
    assert written(biased, TokenRules(allowed=(4, 7)), 1) == [4]


def test_rules_that_leave_nothing() -> None:
    with pytest.raises(RequestError, match="no token can be chosen"):
        written(CHAINS[1], TokenRules(allowed=(4,), bad_words=((4,),)), 1)
