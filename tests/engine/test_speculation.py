"""Guessed tokens change nothing: the same ids and log-probabilities, bit for bit, as without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from asking import NO_END, random_prompt, told
from guessing import MOST, SCRIPTS, GuessingEngine, check_crowd, mixed, right, verify_everything

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.loading.loader import Model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Finished
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.speculation_options import SpeculationOptions

OPTIONS = EngineOptions(
    n_ctx=512, n_ubatch=32, n_gpu_layers=0, kernel_family="simd",
)  # fmt: skip
PROMPT = random_prompt(40, 1)

Start = Callable[..., GuessingEngine]


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch,
    start_sound: Callable[[str, EngineOptions], tuple[Model, Engine]],
) -> Start:
    verify_everything(monkeypatch)
    return lambda name, **changes: GuessingEngine(start_sound(name, replace(OPTIONS, **changes))[1])


@pytest.mark.parametrize(
    "name",
    [
        "gemma3-dense",
        *[
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("gpt-oss-moe", "deepseek2-moe", "deepseek32-moe", "gemma4-e2b")
        ],
    ],
)
def test_every_kind_of_attention(start: Start, name: str) -> None:
    """Windows in rings, sinks, latent and sparse keys: across pages, parts of keys and windows."""
    guessing = start(name)
    sampling = SamplingParams(temperature=0.8, seed=1)
    for n_prompt in (60, 250):
        prompt = random_prompt(n_prompt, 2)
        alone = guessing.submit(None, prompt, 40, sampling, n_probs=3)
        expected = told(alone)
        for script in (right, mixed):
            reply = guessing.submit(script(alone.tokens), prompt, 40, sampling, n_probs=3)
            assert told(reply) == expected, (n_prompt, script)
        counts = guessing.made[-2].counts
        assert (
            counts.accepted.total()
            == counts.drafted.total()
            >= len(alone.tokens) * MOST // (MOST + 1) - 1
        )


RECURRENT = [
    "mamba-dense",
    *[
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "mamba2-dense", "rwkv6", "rwkv7", "qwen3next-moe", "kimi-linear-moe",
            "falcon-h1-dense", "lfm2-dense", "jamba-dense", "minimax-01-moe", "deepseek4-moe",
        )
    ],
]  # fmt: skip


@pytest.mark.parametrize("name", RECURRENT)
def test_every_kind_of_state(start: Start, name: str) -> None:
    """It is put back after a wrong guess, and right where another begins with its copy."""
    guessing = start(name, checkpoint_min_step=32)
    sampling = SamplingParams(temperature=0.8, seed=1, logit_bias=NO_END)
    prompt = random_prompt(70, 2)
    alone = guessing.submit(None, prompt, 60, sampling, n_probs=3)
    expected = told(alone)
    after = [*prompt, *alone.tokens, *PROMPT]
    next_alone = told(guessing.submit(None, after, 20, sampling, n_probs=3, cache_prompt=False))
    for script in SCRIPTS:
        for cached in (False, True):
            reply = guessing.submit(
                script(alone.tokens), prompt, 60, sampling, n_probs=3, cache_prompt=cached
            )
            assert told(reply) == expected, (script, cached)
        counts = guessing.made[-1].counts
        assert counts.drafted.total() > len(alone.tokens) // 2
        told_next = told(guessing.submit(None, after, 20, sampling, n_probs=3))
        assert told_next == next_alone, script


def test_a_crowd_for_which_pages_run_out(start: Start) -> None:
    """With four choices of one prompt, and one that is cancelled: nobody is paused for a guess
    that would not be without, and whoever is paused goes on as if nothing had been."""
    guessing = start("llama-dense", n_ctx=384)
    last, n_preempted = check_crowd(guessing, PROMPT)
    assert n_preempted > 0
    assert isinstance(last, Finished)


def test_a_context_that_shifts(start: Start) -> None:
    guessing = start("llama-dense", n_ctx=96, context_shift=True)
    sampling = SamplingParams(temperature=0.8, seed=1, logit_bias=NO_END)
    alone = guessing.submit(None, PROMPT, 150, sampling, n_probs=3, n_keep=10)
    expected = told(alone)
    assert expected[-1]
    for script in (right, mixed):
        reply = guessing.submit(script(alone.tokens), PROMPT, 150, sampling, n_probs=3, n_keep=10)
        assert told(reply) == expected
    assert guessing.made[0].counts.accepted.total() > 100


@pytest.mark.parametrize(
    "name",
    [
        "llama-dense",
        *[pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3-dense", "mamba-dense")],
    ],
)
def test_the_kernels_of_gpus_differ_by_rounding(start: Start, name: str) -> None:
    """They guess nothing that is not asked for; then the same tokens, of these models, and nearly
    the same log-probabilities."""
    assert start(name, kernel_family="simt").engine.info.speculation.in_use == ()
    asked = SpeculationOptions(types=("grammar",))
    guessing = start(name, kernel_family="simt", speculation=asked)
    assert guessing.engine.info.speculation.in_use == ("grammar",)
    sampling = SamplingParams(temperature=0.8, seed=1, logit_bias=NO_END)
    alone = guessing.submit(None, PROMPT, 40, sampling, n_probs=3).wait()
    for script in (right, mixed):
        reply = guessing.submit(script(alone.tokens), PROMPT, 40, sampling, n_probs=3).wait()
        assert reply.tokens == alone.tokens
        scores = [score.logprob for score in reply.scores]
        assert scores == pytest.approx([score.logprob for score in alone.scores], abs=1e-3)
        assert guessing.made[-1].counts.accepted.total() > 10
