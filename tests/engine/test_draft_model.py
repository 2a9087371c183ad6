"""A model that guesses for another changes nothing, and what it computes is found again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asking import GREEDY, Held, at_once, guess_everything, random_prompt, submit, told

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.loading.draft_loader import check_vocabularies
from gguf_serve.engine.loading.loader import Model, load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import DraftLimits, Request
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.speculation_options import DraftOptions, SpeculationOptions

OPTIONS = EngineOptions(
    n_ctx=512, n_ubatch=32, n_gpu_layers=0, kernel_family="simd",
)  # fmt: skip
PROMPT = random_prompt(70, 1)
NO_END = ((0, float("-inf")),)
SEED = SamplingParams(temperature=0.8, seed=1)
Start = Callable[..., Engine]


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch,
    conformance_model: Callable[[str], Path],
    start_sound: Callable[[str, EngineOptions], tuple[Model, Engine]],
) -> Start:
    guess_everything(monkeypatch)

    def started(name: str, draft: str | None, n_vocab: int = 0, **changes: Any) -> Engine:
        path = None if draft is None else str(conformance_model(draft))
        guesses = SpeculationOptions(draft=DraftOptions(model=path, n_max=4, n_vocab=n_vocab))
        model, engine = start_sound(name, replace(OPTIONS, speculation=guesses, **changes))
        assert (model.drafter is None) == (draft is None)
        return engine

    return started


ASKED: list[dict[str, Any]] = [
    {"sampling": GREEDY, "n_probs": 3},
    {"sampling": SEED, "n_probs": 3},
    {"sampling": replace(SEED, repeat_penalty=1.3, dry_multiplier=0.8)},
    {"sampling": replace(SEED, mirostat=2)},
]


@pytest.mark.parametrize(
    ("name", "draft"),
    [
        ("llama-dense", "qwen2-dense"),
        pytest.param("gemma3-dense", "gemma3-dense", marks=pytest.mark.slow),
    ],
)
def test_a_draft_model_changes_nothing(start: Start, name: str, draft: str) -> None:
    """Not for one that begins with what another has computed, and leaves, either."""
    prompts = [PROMPT, PROMPT[:50] + random_prompt(30, 2), random_prompt(60, 3), PROMPT]
    alone, guessing = start(name, None), start(name, draft)
    for asked in ASKED:
        expected = [told(submit(alone, prompt, 40, **asked)) for prompt in prompts]
        replies = [submit(guessing, prompt, 40, **asked) for prompt in prompts]
        assert [told(reply) for reply in replies] == expected, asked
    assert guessing.stats().n_drafted > 0


def test_a_draft_that_is_its_target_is_always_right(start: Start) -> None:
    """After prefixes that are found again, too: its pages hold what they should."""
    engine = start("llama-dense", "llama-dense")
    for n_prompt in (70, 90, 40):
        prompt = PROMPT + random_prompt(n_prompt, n_prompt)
        for _ in range(2):
            reply = submit(engine, prompt, 60, replace(GREEDY, logit_bias=NO_END)).wait()
            drafts = reply.end.timings.drafts
            assert drafts.n_accepted == drafts.n_tokens > 40
    limited = submit(engine, PROMPT, 20, drafts=DraftLimits(0, 0, 0.0)).wait()
    assert limited.end.timings.drafts.n_tokens == 0


def test_a_draft_of_few_tokens_guesses_these(start: Start) -> None:
    """Those with a row in what is left of its output, whatever it would say else."""
    first = 32
    whole, few = start("llama-dense", "llama-dense"), start("llama-dense", "llama-dense", first)
    expected = submit(whole, PROMPT, 60, GREEDY).wait()
    reply = submit(few, PROMPT, 60, GREEDY).wait()
    assert reply.tokens == expected.tokens
    drafts = reply.end.timings.drafts
    assert 0 < drafts.n_accepted <= sum(token < first for token in reply.tokens)
    assert drafts.n_accepted < expected.end.timings.drafts.n_accepted


def test_a_crowd_for_which_pages_run_out(start: Start) -> None:
    prompts = [random_prompt(30 + 9 * i, 2) for i in range(3)] + [PROMPT] * 4
    seeds = [SamplingParams(temperature=0.8, seed=i, logit_bias=NO_END) for i in range(7)]
    asked = list(zip(prompts, seeds, strict=True))
    alone, guessing = start("llama-dense", None), start("llama-dense", "llama-dense", n_ctx=384)
    expected = [told(submit(alone, p, 90, s, n_probs=2)) for p, s in asked]
    with at_once(guessing):
        endless = guessing.submit(Request(tuple(prompts[0]), seeds[0], 90), leaving := Held())
        replies = [submit(guessing, p, 90, s, n_probs=2) for p, s in asked]
    leaving.wait_until_held()
    guessing.cancel(endless)
    leaving.go_on()
    assert [told(reply) for reply in replies] == expected
    assert guessing.stats().n_preempted > 0


def test_a_context_that_shifts(start: Start) -> None:
    sampling = replace(SEED, logit_bias=NO_END)
    asked: dict[str, Any] = {"n_probs": 3, "n_keep": 10}
    engines = [
        start("llama-dense", draft, n_ctx=96, context_shift=True) for draft in (None, "llama-dense")
    ]
    alone, guessing = (told(submit(engine, PROMPT, 150, sampling, **asked)) for engine in engines)
    assert alone == guessing
    assert alone[-1]


def test_vocabularies_that_differ() -> None:
    words = [f"w{i}" for i in range(200)]
    own: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 1,
    }  # fmt: skip
    check_vocabularies(own, own)
    check_vocabularies(own, own | {"tokenizer.ggml.tokens": ["other"] * 5 + words[5:] + ["more"]})
    for change, words_of_error in (
        ({"tokenizer.ggml.model": "llama"}, "model is 'gpt2', the model's 'llama'"),
        ({"tokenizer.ggml.bos_token_id": 2}, "bos_token_id is 1, the model's 2"),
        ({"tokenizer.ggml.tokens": [*words[:150], "x"]}, "token 150 is 'w150', the model's 'x'"),
    ):
        with pytest.raises(ModelError, match=words_of_error):
            check_vocabularies(own, own | change)


def test_a_model_that_takes_no_token_back_cannot_guess(
    conformance_model: Callable[[str], Path],
) -> None:
    draft = DraftOptions(model=str(conformance_model("mamba-dense")))
    options = replace(OPTIONS, speculation=SpeculationOptions(draft=draft))
    with pytest.raises(ModelError, match="recurrent state cannot guess for another"):
        load_model(conformance_model("llama-dense"), options, lambda share: None)


def test_which_options_name_a_draft_model() -> None:
    named = DraftOptions(model="x.gguf")
    assert SpeculationOptions(draft=named).has_draft
    assert SpeculationOptions(types=("ngram-mod", "draft-simple"), draft=named).has_draft
    assert not SpeculationOptions(types=("draft-simple",)).has_draft
    assert not SpeculationOptions(types=("draft-eagle3",), draft=named).has_draft
    assert not SpeculationOptions(types=("none",), draft=named).has_draft
    assert not SpeculationOptions(draft=replace(named, n_max=0)).has_draft
    assert SpeculationOptions(types=("draft-simple",)).missing == ("draft-simple",)
    assert SpeculationOptions(types=("draft-simple",), draft=named).missing == ()
