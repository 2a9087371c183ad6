"""A T5 that is served: prompts go through its encoder, and the decoder writes the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
from asking import GREEDY, SECONDS, Reply, ask, engine_of, submit
from conformance_data import arrays

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Embedded, Embedding, Event, Request, Scoring

N_TOKENS = 6


@pytest.fixture(scope="module")
def engine(conformance_model: Callable[[str], Path]) -> Iterator[Engine]:
    options = EngineOptions(n_ctx=3 * 320, n_parallel=3, n_ubatch=160)
    engine = engine_of(load_model(conformance_model("t5"), options, lambda share: None))
    yield engine
    engine.close()


def test_answers_beside_others(engine: Engine) -> None:
    """More requests than slots, so that prompts come while others decode."""
    prompt = arrays("t5")["encoder_tokens"].tolist()
    prompts = [prompt, prompt[:7], prompt[5:100], prompt[:1], prompt]
    alone = [ask(engine, each, N_TOKENS).tokens for each in prompts]
    replies = [submit(engine, each, N_TOKENS) for each in prompts]
    assert [reply.wait().tokens for reply in replies] == alone
    assert alone[0][0] == arrays("t5")["logits"][0].argmax()
    assert len(set(map(tuple, alone))) > 2


def test_equal_prompts_are_encoded_once(engine: Engine) -> None:
    """Those that differ in the last token share nothing, though they begin alike and are as long;
    an answer that goes on as another one takes its tokens, too."""
    prompt = arrays("t5")["encoder_tokens"].tolist()[:77]
    first, again = (ask(engine, prompt, N_TOKENS) for _ in range(2))
    assert (first.n_cached, again.n_cached) == (0, 77)
    assert again.tokens == first.tokens
    other = [*prompt[:-1], prompt[-1] + 1]
    alone, beside = ask(engine, other, N_TOKENS), ask(engine, prompt, N_TOKENS)
    assert (alone.n_cached, beside.n_cached) == (0, 77)
    assert beside.tokens == first.tokens
    assert ask(engine, prompt[:64], N_TOKENS).n_cached == 0
    several = [submit(engine, prompt[:70], N_TOKENS) for _ in range(3)]
    assert sorted(reply.wait().n_cached for reply in several) == [0, 70, 70]


def vectors(engine: Engine, prompt: list[int]) -> np.ndarray:
    events: Queue[Event] = Queue()
    engine.submit(Request(tuple(prompt), wants=Embedding("none")), events.put)
    while not isinstance(event := events.get(timeout=SECONDS), Embedded):
        pass
    return np.array(event.vectors)


def test_vectors_are_the_encoders(engine: Engine) -> None:
    found = arrays("t5")
    prompt = found["encoder_tokens"].tolist()
    assert np.abs(vectors(engine, prompt)[::4] - found["encoder_output"]).max() < 1e-2


def test_a_text_after_vectors_of_its_prompt(engine: Engine) -> None:
    prompt = arrays("t5")["encoder_tokens"].tolist()[20:121]
    vectors(engine, prompt)
    found, alone = (ask(engine, prompt, N_TOKENS, cache_prompt=cached) for cached in (True, False))
    assert found.tokens == alone.tokens
    assert alone.n_cached == 0


def test_prompts_that_cannot_be(engine: Engine) -> None:
    with pytest.raises(RequestError, match="161 tokens, but this model must process it at once"):
        engine.submit(Request((1,) * 161), Reply())
    with pytest.raises(RequestError, match="no log-probabilities"):
        engine.submit(Request((1, 2), GREEDY, wants=Scoring(0)), Reply())
