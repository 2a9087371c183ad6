"""Guesses change nothing in any model that generates: all that a request may ask for, in company,
with guesses that are always right, always wrong, or either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asking import NO_END, SAMPLINGS, Reply, random_prompt, told
from conformance_data import names
from guessing import (
    SCRIPTS,
    GuessingEngine,
    Script,
    check_crowd,
    right,
    verify_everything,
    wrong,
)
from model_files import updates_of, write_adapter

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.loading.loader import Model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.sampling_params import SamplingParams

OPTIONS = EngineOptions(n_ctx=2048, n_parallel=8, n_ubatch=64, n_gpu_layers=0, kernel_family="simd")
PROMPT = random_prompt(70, 1)  # of more than two pages, so that requests share some
SEEDS = [SamplingParams(temperature=0.8, seed=seed) for seed in range(11, 16)]
# What a request may ask for, by a name; five seeds of one prompt are what n = 5 is.
ASKED: dict[str, dict[str, Any]] = {
    **SAMPLINGS, **{f"seed {each.seed}": {"sampling": each} for each in SEEDS}
}  # fmt: skip
DAILY = ["lfm2-dense", "llama-dense"]  # one with a state, which is put back, and one without
# Those of ../shared's second part that generate text, heads aside.
VARIANTS = [
    "apertus", "arwkv7", "arwkv7-nogate", "bitnet", "deepseek2-lite", "deepseek2-ocr",
    "draft-target", "gemma4-26b-a4b", "gemma4-31b", "gemma4-e4b", "gpt-oss-yarn",
    "granitehybrid-moe", "graniteswitch", "jamba-moe", "llama-linear", "nemotron_h_moe-moe",
    "nemotron_h_moe-puzzle", "phi3-longrope", "plm", "pockettts", "qwen3-yarn", "qwen3tts", "rwkv6",
    "rwkv6qwen2", "step35",
]  # fmt: skip
ALL = sorted({*names(), *VARIANTS})
NAMES = [
    *DAILY, *(pytest.param(name, marks=pytest.mark.slow) for name in ALL if name not in DAILY)
]  # fmt: skip
ADAPTED = [
    "llama-dense", "gemma3-dense", "lfm2-dense", "llama-moe", "mamba2-dense", "jamba-moe",
]  # fmt: skip
MATRICES = (
    "attn_q.weight", "attn_v.weight", "ffn_up.weight", "ffn_down.weight", "exps.weight",
    "ssm_in.weight", "ssm_out.weight", "in_proj.weight", "out_proj.weight",
)  # fmt: skip

Start = Callable[..., GuessingEngine]


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch,
    start_sound: Callable[[str, EngineOptions], tuple[Model, Engine]],
) -> Start:
    verify_everything(monkeypatch)
    return lambda name, **changes: GuessingEngine(start_sound(name, replace(OPTIONS, **changes))[1])


Ask = Callable[[str, Script | None], Reply]


def same_with_every_script(guessing: GuessingEngine, asked: list[str], ask: Ask) -> None:
    """What is asked by these names at once is answered as without guesses."""
    alone = {name: ask(name, None) for name in asked}
    expected = {name: told(reply) for name, reply in alone.items()}
    for script in SCRIPTS:
        guessing.made.clear()
        replies = {name: ask(name, script(alone[name].tokens)) for name in asked}
        for name, reply in replies.items():
            assert told(reply) == expected[name], (name, script)
        counts = [each.counts for each in guessing.made]
        n_drafted = sum(each.drafted["scripted"] for each in counts)
        n_right = sum(each.accepted["scripted"] for each in counts)
        least, most = {right: (0.8, 1.0), wrong: (0.0, 0.0)}.get(script, (0.1, 0.9))
        assert n_drafted > 0
        assert least <= n_right / n_drafted <= most, script


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_is_asked_for(start: Start, name: str) -> None:
    guessing = start(name)

    def ask(named: str, script: Script | None) -> Reply:
        return guessing.submit(script, PROMPT, 24, n_probs=3, **ASKED[named])

    same_with_every_script(guessing, list(ASKED), ask)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_contexts_that_shift(start: Start, name: str) -> None:
    guessing = start(name, n_ctx=8 * 96, context_shift=True)
    if guessing.engine.info.start_token is not None:
        pytest.skip("a prompt that an encoder reads stays")
    samplings = {
        "seed": replace(SEEDS[0], logit_bias=NO_END),
        "dry": replace(SEEDS[1], logit_bias=NO_END, dry_multiplier=0.8),
    }

    def ask(named: str, script: Script | None) -> Reply:
        return guessing.submit(script, PROMPT, 60, samplings[named], n_probs=3, n_keep=10)

    same_with_every_script(guessing, list(samplings), ask)
    assert told(ask("seed", None))[-1], "no context was full"


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_pauses_and_one_who_leaves(start: Start, name: str) -> None:
    """Pages run out, and a request with guesses is cancelled amid them."""
    guessing = start(name, n_ctx=384, n_parallel=4)
    check_crowd(guessing, PROMPT[:40])


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTED)
def test_adapters(
    start: Start, conformance_model: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """Requests with other scales beside each other."""
    base = conformance_model(name)
    arch = start(name).engine.info.architecture
    file = write_adapter(tmp_path / "a.gguf", updates_of(base, 1, MATRICES), 16.0, arch)
    guessing = start(name, adapters=((file, 1.0),))
    scales = {str(scale): ((0, scale),) for scale in (0.0, 0.5, 1.0)}

    def ask(named: str, script: Script | None) -> Reply:
        return guessing.submit(script, PROMPT, 24, SEEDS[0], n_probs=3, adapters=scales[named])

    same_with_every_script(guessing, list(scales), ask)
