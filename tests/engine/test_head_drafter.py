"""Heads of speculation change nothing, and guess what llama.cpp's do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asking import (
    GREEDY,
    SAMPLINGS,
    Reply,
    at_once,
    guess_everything,
    random_prompt,
    submit,
    told,
)
from conformance_data import arrays, read_spec
from guessing import SCRIPTS, Overruled

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.loading.loader import Model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.speculation.model_drafter import Wish
from gguf_serve.engine.speculation.models.assistant_drafter import AssistantDrafter
from gguf_serve.engine.speculation.models.block_drafter import BlockDrafter
from gguf_serve.engine.speculation.models.head_drafter import HeadDrafter
from gguf_serve.engine.speculation_options import DraftOptions, SpeculationOptions

OPTIONS = EngineOptions(n_ctx=512, n_ubatch=32, n_gpu_layers=0, kernel_family="simd")
PROMPT = random_prompt(70, 1)
SEED = SamplingParams(temperature=0.8, seed=1)
NO_END = ((0, float("-inf")),)
DAILY = "glm4moe-mtp"
# In the files of their models
MTP = [
    "bailingmoe3-mtp", "cohere2moe-mtp", "deepseek2-mtp", "deepseek32-mtp", "deepseek4-mtp",
    "glm-dsa-mtp", DAILY, "hy_v3-mtp", "mimo2-mtp", "nemotron_h_moe-mtp", "qwen35-mtp",
    "qwen35moe-mtp", "qwen3next-mtp", "step35-mtp",
]  # fmt: skip
# In files of their own
DRAFTS = [
    "dflash", "dflash2", "dspark", "dspark-deepseek4", "dspark-gemma4", "eagle3", "eagle3-own",
    "gemma4-assistant", "gemma4-assistant-e2b",
]  # fmt: skip
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in MTP + DRAFTS if name != DAILY]
KINDS = (HeadDrafter, AssistantDrafter, BlockDrafter)
Start = Callable[..., Engine]
Propose = Callable[..., list[list[int]]]


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch,
    conformance_model: Callable[[str], Path],
    start_sound: Callable[[str, EngineOptions], tuple[Model, Engine]],
) -> Start:
    guess_everything(monkeypatch)

    def started(name: str, guesses: bool, draft: str | None = None, **changes: Any) -> Engine:
        file = None if draft is None else str(conformance_model(draft))
        types = ("draft-mtp",) if guesses and file is None else ()
        spec = SpeculationOptions(types=types, draft=DraftOptions(model=file, n_max=4))
        model, engine = start_sound(name, replace(OPTIONS, speculation=spec, **changes))
        assert (model.drafter is None) == (not guesses)
        return engine

    return started


ASKED: list[dict[str, Any]] = [
    {"sampling": GREEDY, "n_probs": 3},
    {"sampling": SEED, "n_probs": 3},
    {"sampling": replace(SEED, repeat_penalty=1.3, dry_multiplier=0.8)},
]


@pytest.mark.parametrize("name", [DAILY, *SLOW])
def test_heads_change_nothing(start: Start, name: str) -> None:
    """Not for one that begins with what another has computed, and leaves, either."""
    prompts = [PROMPT, PROMPT[:50] + random_prompt(30, 2), random_prompt(60, 3), PROMPT]
    target = read_spec(name).get("target")
    draft = None if target is None else name
    alone, guessing = start(target or name, False), start(target or name, True, draft)
    for asked in ASKED:
        expected = [told(submit(alone, prompt, 40, **asked)) for prompt in prompts]
        replies = [submit(guessing, prompt, 40, **asked) for prompt in prompts]
        assert [told(reply) for reply in replies] == expected, asked
    assert guessing.stats().n_drafted > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [DAILY, "mimo2-mtp", *DRAFTS])
def test_guesses_are_those_of_llama_cpp(
    start: Start, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made: list[list[list[int]]] = []

    def noting(propose: Propose) -> Propose:
        def noted(self: HeadDrafter, wishes: Sequence[Wish], worth: float) -> list[list[int]]:
            made.append(propose(self, wishes, worth))
            return made[-1]

        return noted

    for kind in KINDS:
        monkeypatch.setattr(kind, "propose", noting(kind.propose))
    target, found = read_spec(name).get("target"), arrays(name)
    engine = start(target or name, True, None if target is None else name)
    submit(engine, PROMPT, 40, GREEDY).wait()  # prices are known then
    for _ in range(2):  # with a prefix that is found, too
        made.clear()
        reply = submit(engine, found["tokens"].tolist(), 8, GREEDY).wait()
        assert reply.tokens[0] == found["draft_tokens"][0]
        n = min(4, len(found["draft_tokens"]) - 1)
        assert made[0][0][:n] == found["draft_tokens"][1 : n + 1].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", MTP + DRAFTS)
def test_everything_that_is_asked_for(
    start: Start, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In company; with the guesses of the heads, and with others in their place."""
    target = read_spec(name).get("target")
    overruled = Overruled(monkeypatch, *KINDS)
    engines = [
        start(target or name, guesses, name if guesses and target else None, n_ctx=1024)
        for guesses in (False, True)
    ]
    prompts = {named: [*PROMPT, i] for i, named in enumerate(SAMPLINGS)}

    def ask(engine: Engine) -> dict[str, Reply]:
        return {
            named: submit(engine, prompts[named], 24, n_probs=3, **asked)
            for named, asked in SAMPLINGS.items()
        }

    alone, guessing = engines
    answers = ask(alone)
    expected = {named: told(reply) for named, reply in answers.items()}
    for script in (None, *SCRIPTS):
        if script is not None:
            overruled.scripts = {
                tuple(prompts[named]): script(reply.tokens) for named, reply in answers.items()
            }
        before = guessing.stats().n_drafted
        assert {named: told(reply) for named, reply in ask(guessing).items()} == expected, script
        assert guessing.stats().n_drafted > before


@pytest.mark.slow
@pytest.mark.parametrize("name", MTP + DRAFTS)
def test_a_crowd_for_which_pages_run_out(start: Start, name: str) -> None:
    """Sequences pause, and what they have begins anew; a context that shifts, too."""
    target = read_spec(name).get("target")
    prompts = [random_prompt(30 + 9 * i, 2) for i in range(3)] + [PROMPT] * 4
    asked = [replace(SEED, seed=i, logit_bias=NO_END) for i in range(len(prompts))]
    answers = list[list[Any]]()
    for guesses in (False, True):
        draft = name if guesses and target else None
        engine = start(target or name, guesses, draft, n_ctx=256, context_shift=True)
        with at_once(engine):
            replies = [
                submit(engine, prompt, 220 if i == 0 else 70, sampling, n_probs=2)
                for i, (prompt, sampling) in enumerate(zip(prompts, asked, strict=True))
            ]
        answers.append([told(reply) for reply in replies])
        assert engine.stats().n_preempted > 0
    assert answers[0] == answers[1]
