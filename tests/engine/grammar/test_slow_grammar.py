"""Grammars whose masks take long: who else is served does not wait for them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asking import GREEDY, Reply, ask, engine_of, random_prompt, submit

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.grammar import guide
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.grammar.guide import Guide
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Delta, Event, Failed, Request
from gguf_serve.kernels.opencl.platforms import list_devices

PROMPT = random_prompt(20)
LETTERS = Constraint("regex", "[a-f]{3}(-[a-f]{3}){4}")
SLOW = Constraint("regex", "[g-k]{4}")
SECONDS = 1.0  # of every mask of SLOW; a busy machine stops others for half of that


@pytest.fixture(scope="module")
def engine(conformance_model: Callable[[str], Path]) -> Iterator[Engine]:
    if not list_devices():
        pytest.skip("no OpenCL device")
    options = EngineOptions(n_ctx=2048, n_parallel=4, n_gpu_layers=0)
    model = load_model(conformance_model("llama-dense"), options, lambda share: None)
    engine = engine_of(model, [0])
    yield engine
    assert engine.healthy
    engine.close()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the masks of SLOW take long, as an ambiguous grammar's do."""
    compute = Guide._compute

    def slowly(self: Guide) -> None:
        if self._constraint == SLOW:
            time.sleep(SECONDS)
        compute(self)

    monkeypatch.setattr(Guide, "_compute", slowly)


class Timed(Reply):
    """Notes when each token came."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Delta):
            self.times.append(time.monotonic())
        super().__call__(event)

    @property
    def longest(self) -> float:
        return max(b - a for a, b in zip(self.times, self.times[1:], strict=False))


@pytest.mark.usefixtures("slow")
def test_others_go_on_meanwhile(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for reply in [submit(engine, PROMPT, 400) for _ in range(3)]:
        reply.wait()  # what they need is compiled now
    monkeypatch.setattr("asking.Reply", Timed)
    free = submit(engine, PROMPT, 900)
    bound = submit(engine, PROMPT, 20, constraint=LETTERS)
    slow = submit(engine, PROMPT, 3, constraint=SLOW)
    assert re.fullmatch("[g-k]{3}", slow.wait().text)
    assert re.fullmatch(LETTERS.text, bound.wait().text.rstrip("\0"))
    for reply in (free.wait(), bound):
        assert isinstance(reply, Timed)
        assert reply.longest < 0.75 * SECONDS
    assert isinstance(slow, Timed)
    assert slow.times[-1] - slow.times[0] > 1.5 * SECONDS


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("alone", [True, False])
def test_what_waits_for_its_mask_is_what_it_would_be(engine: Engine, alone: bool) -> None:
    """The device has not seen the mask: the host chooses, with the same log-probabilities."""
    other = None if alone else submit(engine, PROMPT, 900)
    late = ask(engine, PROMPT, 4, constraint=SLOW, n_probs=3)
    if other is not None:
        other.wait()
    same = ask(engine, PROMPT, 4, constraint=Constraint("regex", "[g-k]{4}|x"), n_probs=3)
    assert late.tokens == same.tokens
    assert [score.top for score in late.scores] == [score.top for score in same.scores]
    assert [s.logprob for s in late.scores] == pytest.approx([s.logprob for s in same.scores])


@pytest.mark.usefixtures("slow")
def test_cancelled_while_it_waits(engine: Engine) -> None:
    reply = Reply()
    ticket = engine.submit(Request(tuple(PROMPT), GREEDY, 4, constraint=SLOW), reply)
    time.sleep(SECONDS / 4)
    engine.cancel(ticket)
    begin = time.monotonic()
    assert reply.wait().end.reason == "cancelled"
    assert time.monotonic() - begin < 0.75 * SECONDS
    ask(engine, PROMPT, 5)


def test_a_grammar_has_so_much_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide, "FREE_SECONDS", 0.0)
    monkeypatch.setattr(guide, "TOKEN_SECONDS", 0.0)
    other = submit(engine, PROMPT, 30)
    end = ask(engine, PROMPT, 5, constraint=LETTERS).events[-1]
    assert isinstance(end, Failed)
    assert end.by_request
    assert "the grammar has taken 0.0 seconds for 1 tokens: at most 0" in end.message
    assert len(other.wait().tokens) == 30
