"""A completion goes on in another engine as if nothing had happened, wherever it was cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from asking import GREEDY, NO_END, SAMPLINGS, Reply, ask, random_prompt

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import ContextOverflowError, RequestError
from gguf_serve.engine.loading.loader import Model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Delta, Mark, ReasoningBudget, Resume, Scoring
from gguf_serve.engine.sampling_params import SamplingParams

OPTIONS = EngineOptions(n_ctx=512, n_ubatch=32, n_gpu_layers=0, kernel_family="simd")
PROMPT = random_prompt(40, 1)
SEEDED = SamplingParams(temperature=0.8, seed=1, logit_bias=NO_END)

Start = Callable[..., Engine]


@pytest.fixture
def start(start_sound: Callable[[str, EngineOptions], tuple[Model, Engine]]) -> Start:
    return lambda name, **changes: start_sound(name, replace(OPTIONS, **changes))[1]


def told(*deltas: Delta) -> list[Any]:
    return [
        "".join(delta.text for delta in deltas),
        [token for delta in deltas for token in delta.tokens],
        [score for delta in deltas for score in delta.scores],
    ]


def after(deltas: list[Delta]) -> Resume:
    """What is known of a completion whose engine is gone after these."""
    text, tokens, _ = told(*deltas)
    mark = next(delta.mark for delta in reversed(deltas) if delta.mark is not None)
    return Resume(tuple(tokens), len(text), mark)


def assert_goes_on(
    engine: Engine, other: Engine, max_tokens: int, sampling: SamplingParams, n_cuts: int = 3,
    **fields: Any,
) -> Reply:  # fmt: skip
    """Cut in so many places, and after the last token, before its end has been heard."""
    whole = ask(engine, PROMPT, max_tokens, sampling, marks=True, **fields)
    deltas: list[Delta] = whole.all(Delta)
    assert len(deltas) > n_cuts, deltas
    cuts = [1 + i * (len(deltas) - 1) // n_cuts for i in range(n_cuts)] + [len(deltas)]
    for cut in cuts:
        resume = after(deltas[:cut])
        rest = ask(other, PROMPT, max_tokens, sampling, marks=True, resume=resume, **fields)
        assert told(*deltas[:cut], *rest.all(Delta)) == told(*deltas), cut
        assert rest.end.reason == whole.end.reason
        assert rest.end.stopping_word == whole.end.stopping_word
        assert rest.end.truncated == whole.end.truncated
        n_rest = whole.end.timings.predicted_n - len(resume.tokens)
        assert rest.end.timings.predicted_n == n_rest
    return whole


def test_every_sampler(start: Start) -> None:
    engine, other = start("llama-dense"), start("llama-dense")
    for name, asked in SAMPLINGS.items():
        asked = dict(asked)
        if name == "stop":  # held back, and released when another character comes
            letters = ask(engine, PROMPT, 40, **{**asked, "stop": ()}).text
            asked["stop"] = (letters[20:22] + letters[22].swapcase() + "?", letters[30:33])
        assert_goes_on(engine, other, 40, n_probs=3, **asked)


def test_the_end_of_reasoning_is_forced_once(start: Start) -> None:
    engine, other = start("llama-dense"), start("llama-dense")
    budget = ReasoningBudget("<", ("THE END",), tuple(b"And so: THE END"), 5, is_open=True)
    whole = assert_goes_on(engine, other, 40, SEEDED, n_cuts=12, reasoning=budget)
    assert whole.text.count("THE END") == 1


def test_a_recurrent_model_and_one_with_windows(start: Start) -> None:
    for name in ("mamba2-dense", "gemma3-dense"):
        assert_goes_on(start(name), start(name), 20, SEEDED, n_cuts=2, n_probs=3)


def test_a_context_that_has_shifted(start: Start) -> None:
    options = {"n_ctx": 96, "context_shift": True}
    engine, other = start("llama-dense", **options), start("llama-dense", **options)
    whole = assert_goes_on(engine, other, 150, SEEDED, n_cuts=6, n_keep=10)
    assert whole.end.truncated


def test_what_cannot_go_on_is_refused(start: Start) -> None:
    engine = start("llama-dense", n_ctx=96)
    for resume, fields, message in (
        (Resume((1, 2), 7, Mark()), {}, "7 characters were delivered, but these tokens have"),
        (Resume((1, 0, 2), 1, Mark()), {}, "token 2 comes after the end"),
        (Resume((128,), 1, Mark()), {}, "token 128 is not in the vocabulary"),
        (Resume((1,), 1, Mark(1, (0.5,))), {}, "1 values were learned, these samplers learn 0"),
        (Resume((1,), 1, Mark()), {"wants": Scoring()}, "only generated text"),
    ):
        with pytest.raises(RequestError, match=message):
            ask(engine, PROMPT, 12, GREEDY, resume=resume, **fields)
    with pytest.raises(ContextOverflowError):
        ask(engine, PROMPT, 12, GREEDY, resume=Resume((1,) * 90, 90, Mark()))
