"""Constrained requests in the engine, on a small random model of 128 characters."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import GREEDY, Held, Reply, ask, engine_of, random_prompt, submit
from msgspec.structs import replace

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar.constraint import Constraint, Trigger
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import (
    Failed,
    Finished,
    PromptScored,
    Request,
    Scoring,
)
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.kernels.opencl.platforms import list_devices

EOS = 0
PROMPT = random_prompt(20)
WARM = SamplingParams(temperature=1.0, seed=5)
LETTERS = Constraint("regex", "[a-f]{3}(-[a-f]{3}){4}")
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["x", "y"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "open": {"type": "boolean"},
    },
    "required": ["kind", "size", "open"],
    "additionalProperties": False,
}
OBJECT = Constraint("json_schema", json.dumps(SCHEMA))


@pytest.fixture(scope="module", params=["simd", "simt"])
def engine(
    request: pytest.FixtureRequest, conformance_model: Callable[[str], Path]
) -> Iterator[Engine]:
    if not list_devices():
        pytest.skip("no OpenCL device")
    options = EngineOptions(n_ctx=2048, n_parallel=8, n_gpu_layers=0, kernel_family=request.param)
    model = load_model(conformance_model("llama-dense"), options, lambda share: None)
    engine = engine_of(model, [EOS])
    yield engine
    assert engine.healthy
    engine.close()


def valid(reply: Reply) -> bool:
    return re.fullmatch(LETTERS.text, reply.text.rstrip("\0")) is not None


SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.5},
    {"top_k": 0, "top_p": 0.9},
    {"mirostat": 2},
    {"typical_p": 0.8, "min_p": 0.0},
    {"xtc_probability": 0.5},
    {"repeat_penalty": 1.3, "dry_multiplier": 0.8},
    {"logit_bias": ((ord("a"), 5.0), (ord("z"), 100.0), (ord("b"), -float("inf")))},
    {"repeat_penalty": 1.5, "top_k": 0, "temperature": 2.0},
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_sampler_keeps_to_the_grammar(engine: Engine, sampling: dict[str, Any]) -> None:
    params = SamplingParams(**({"seed": 3} | sampling))
    for n_probs in (0, 3):
        reply = ask(engine, PROMPT, 60, params, constraint=LETTERS, n_probs=n_probs)
        assert reply.end.reason == "eos", reply.text
        assert valid(reply), reply.text
        biased = dict(params.logit_bias)
        assert not {token for token in reply.tokens if biased.get(token) == -float("inf")}


def test_objects_are_valid(engine: Engine) -> None:
    for seed in range(8):
        params = SamplingParams(seed=seed, temperature=1.5)
        reply = ask(engine, PROMPT, 250, params, constraint=OBJECT)
        found = json.loads(reply.text.rstrip("\0"))
        assert list(found) == ["kind", "size", "open"]


def test_greedy_takes_the_likeliest_that_is_allowed(engine: Engine) -> None:
    """And its log-probability is that among all tokens, as are the likeliest shown."""
    ask(engine, PROMPT, 1)  # GPUs' bits depend on how much of a prompt is in the cache
    free = ask(engine, PROMPT, 1, n_probs=128).scores[0]
    bound = ask(engine, PROMPT, 1, constraint=LETTERS, n_probs=128).scores[0]
    assert bound.top == free.top
    best = next(entry for entry in free.top if chr(entry[0]) in "abcdef")
    assert (bound.id, bound.logprob) == (best[0], pytest.approx(best[2]))


def test_beside_free_streams(engine: Engine) -> None:
    """Streams with and without a grammar do not change each other."""
    jobs: list[tuple[list[int], SamplingParams, Constraint | None]] = [
        (random_prompt(5 + 9 * i, 2), dataclasses.replace(WARM, seed=i), LETTERS if i % 2 else None)
        for i in range(8)
    ]
    together = [submit(engine, p, 40, s, constraint=c) for p, s, c in jobs]
    for reply, (prompt, sampling, constraint) in zip(together, jobs, strict=True):
        alone = ask(engine, prompt, 40, sampling, constraint=constraint, cache_prompt=False)
        assert reply.wait().tokens == alone.tokens
        assert constraint is None or valid(reply)


def test_a_sampler_that_ends_texts_waits_for_the_grammar(engine: Engine) -> None:
    """No letter is likely here: without a grammar that is the end at once."""
    params = dataclasses.replace(WARM, samplers=("infill",))
    assert ask(engine, PROMPT, 60, params).end.reason == "eos"
    reply = ask(engine, PROMPT, 60, params, constraint=LETTERS)
    assert valid(reply)


def test_cut_by_max_tokens(engine: Engine) -> None:
    reply = ask(engine, PROMPT, 6, WARM, constraint=LETTERS)
    assert reply.end.reason == "limit"
    assert re.fullmatch("[a-f]{3}-[a-f]{2}", reply.text)


def test_cut_by_a_stop_string(engine: Engine) -> None:
    reply = ask(engine, PROMPT, 60, WARM, constraint=LETTERS, stop=("-",))
    assert (reply.end.reason, reply.end.stopping_word) == ("word", "-")
    assert re.fullmatch("[a-f]{3}", reply.text)


def test_cancelled_in_the_middle(engine: Engine) -> None:
    endless = Constraint("regex", "[a-f]+")
    reply, other = Held(5), submit(engine, PROMPT, 60, WARM, constraint=LETTERS)
    request = Request(
        tuple(PROMPT), dataclasses.replace(WARM, logit_bias=((EOS, -100.0),)), constraint=endless
    )
    ticket = engine.submit(request, reply)
    reply.wait_until_held()
    engine.cancel(ticket)
    reply.go_on()
    assert reply.wait().end.reason == "cancelled"
    assert valid(other.wait())


def test_lazily_after_a_word(engine: Engine) -> None:
    """The prompt's end counts: what the model writes first is the grammar's."""
    constraint = Constraint("regex", "<[abc]{4}>", (Trigger("<"),), prefix="text <")
    reply = ask(engine, PROMPT, 60, WARM, constraint=constraint)
    assert re.fullmatch("[abc]{4}>\0?", reply.text)
    free = ask(engine, PROMPT, 30, WARM, constraint=replace(constraint, prefix="", triggers=(
        Trigger("no such word"),
    )))  # fmt: skip
    assert free.tokens == ask(engine, PROMPT, 30, WARM).tokens


def test_with_the_prompt_scored(engine: Engine) -> None:
    free = ask(engine, PROMPT, 30, GREEDY, wants=Scoring(2))
    bound = ask(engine, PROMPT, 30, GREEDY, wants=Scoring(2), constraint=LETTERS)
    assert valid(bound)
    assert bound.all(PromptScored) == free.all(PromptScored)


def test_refused_when_submitted(engine: Engine) -> None:
    with pytest.raises(RequestError, match="invalid regex"):
        ask(engine, PROMPT, 5, constraint=Constraint("regex", "("))
    with pytest.raises(RequestError, match="ignore_eos"):
        ask(engine, PROMPT, 5, dataclasses.replace(GREEDY, ignore_eos=True), constraint=LETTERS)


def test_a_schema_that_no_text_matches(engine: Engine) -> None:
    endless = Constraint("json_schema", '{"$ref": "#"}')
    end = ask(engine, PROMPT, 5, constraint=endless).events[-1]
    assert end == Failed("the grammar has failed: no text goes on to what it asks for", True)


def test_nothing_is_left_to_choose(engine: Engine) -> None:
    """The bias bans what the grammar wants: this request fails, and no other."""
    banned = dataclasses.replace(GREEDY, logit_bias=tuple((ord(c), -np.inf) for c in "abcdef"))
    other = submit(engine, PROMPT, 60, WARM, constraint=LETTERS)
    reply = ask(engine, PROMPT, 5, banned, constraint=LETTERS)
    end = reply.events[-1]
    assert isinstance(end, Failed)
    assert end.by_request
    assert "grammar" in end.message
    assert isinstance(other.wait().events[-1], Finished)
