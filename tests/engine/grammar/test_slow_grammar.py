"""Grammars whose masks take long: who else is served does not wait for them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asking import GREEDY, SECONDS, Reply, ask, at_once, engine_of, random_prompt, submit

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.forward.runner import RowLogits
from gguf_serve.engine.forward.waiting_rows import WaitingRows
from gguf_serve.engine.grammar import guide
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.grammar.guide import Guide
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Failed, Request
from gguf_serve.kernels.opencl.platforms import list_devices

PROMPT = random_prompt(20)
LETTERS = Constraint("regex", "[a-f]{3}(-[a-f]{3}){4}")
SLOW = Constraint("regex", "[g-k]{4}")


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


class Late:
    """Has each mask of SLOW come no sooner than it may, as those of an ambiguous grammar do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_come = threading.Semaphore(0)
        self.comes_when_missed = False
        self.n_missed = 0  # of SLOW, for which their steps have not waited
        self.is_missed = threading.Event()
        compute, add = Guide._compute, WaitingRows.add

        def late(guide: Guide) -> None:
            if guide._constraint == SLOW:
                assert self.may_come.acquire(timeout=SECONDS)
            compute(guide)

        def missed(rows: WaitingRows, row: OutputRow, logits: RowLogits) -> None:
            add(rows, row, logits)
            if isinstance(row.mask, Guide) and row.mask._constraint == SLOW:
                self.n_missed += 1
                self.is_missed.set()
                if self.comes_when_missed:
                    self.may_come.release()

        monkeypatch.setattr(Guide, "_compute", late)
        monkeypatch.setattr(WaitingRows, "add", missed)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[Late]:
    made = Late(monkeypatch)
    yield made
    made.may_come.release(9)


def test_others_go_on_meanwhile(engine: Engine, late: Late) -> None:
    with at_once(engine):
        free = submit(engine, PROMPT, 200)
        bound = submit(engine, PROMPT, 20, constraint=LETTERS)
        slow = submit(engine, PROMPT, 3, constraint=SLOW)
    assert len(free.wait().tokens) == 200
    assert re.fullmatch(LETTERS.text, bound.wait().text.rstrip("\0"))
    assert late.n_missed == 1
    assert slow.tokens == []
    late.may_come.release(3)
    assert re.fullmatch("[g-k]{3}", slow.wait().text)


@pytest.mark.parametrize("alone", [True, False])
def test_what_waits_for_its_mask_is_what_it_would_be(
    engine: Engine, late: Late, alone: bool
) -> None:
    """The device has not seen the mask: the host chooses, with the same log-probabilities."""
    late.comes_when_missed = True
    other = None if alone else submit(engine, PROMPT, 400)
    found = ask(engine, PROMPT, 4, constraint=SLOW, n_probs=3)
    assert late.n_missed == 4
    if other is not None:
        other.wait()
    same = ask(engine, PROMPT, 4, constraint=Constraint("regex", "[g-k]{4}|x"), n_probs=3)
    assert found.tokens == same.tokens
    assert [score.top for score in found.scores] == [score.top for score in same.scores]
    assert [s.logprob for s in found.scores] == pytest.approx([s.logprob for s in same.scores])


def test_cancelled_while_it_waits(engine: Engine, late: Late) -> None:
    reply = Reply()
    ticket = engine.submit(Request(tuple(PROMPT), GREEDY, 4, constraint=SLOW), reply)
    assert late.is_missed.wait(SECONDS)
    engine.cancel(ticket)
    assert reply.wait().end.reason == "cancelled"
    ask(engine, PROMPT, 5)


def test_a_grammar_has_so_much_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide, "FREE_SECONDS", 0.0)
    monkeypatch.setattr(guide, "TOKEN_SECONDS", 0.0)
    other = submit(engine, PROMPT, 30)
    end = ask(engine, PROMPT, 5, constraint=LETTERS).events[-1]
    assert isinstance(end, Failed)
    assert end.by_request
    assert re.search(r"has taken [\d.]+ seconds for 1 tokens: at most 0", end.message)
    assert len(other.wait().tokens) == 30
