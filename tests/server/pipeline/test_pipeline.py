"""A model in two processes: the same texts and scores, and an end with a reason if one is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from asking import NO_END, SAMPLINGS, SECONDS, Reply, engine_of, random_prompt, submit

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import EngineError, EngineStoppedError
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import (
    Delta,
    Embedded,
    Embedding,
    Event,
    Failed,
    PromptScored,
    Request,
    Scoring,
)
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.scheduling.sequence import Plan
from gguf_serve.engine.serving import recovery
from gguf_serve.engine.speculation_options import SpeculationOptions
from gguf_serve.server.options.settings import Settings
from gguf_serve.server.pipeline.start import Processes, connect, start_stages
from gguf_serve.server.pipeline.wire import ChannelWire

OPTIONS = EngineOptions(n_ctx=1024, n_parallel=4, n_ubatch=32, n_gpu_layers="auto")
SEEDED = SamplingParams(temperature=0.8, seed=1, logit_bias=NO_END)


class Pipeline:
    """An engine whose other stages are processes."""

    def __init__(self, path: Path, n: int = 2, options: EngineOptions = OPTIONS) -> None:
        self._n, self.broken = n, 0  # of the next processes, how many are gone at once
        self.may_connect = threading.Event()
        self.may_connect.set()
        model = load_model(path, options, lambda share: None, self._connect())
        assert model.stages is not None
        replacements = partial(model.stages.replaced, self._connect)
        self.engine = engine_of(model, [0], replacements=replacements)

    def _connect(self) -> list[ChannelWire]:
        assert self.may_connect.wait(SECONDS)
        self.processes = Processes(self._n - 1, None)
        if self.broken:
            self.broken -= 1
            self.kill()
        return connect(self.processes)

    def kill(self) -> None:
        process = self.processes._started[-1]._process
        process.kill()
        process.wait()


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope="module")
def pipeline(dense_model: Path) -> Iterator[Pipeline]:
    made = Pipeline(dense_model)
    yield made
    made.engine.close()


@pytest.fixture(scope="module")
def alone(dense_model: Path) -> Iterator[Engine]:
    made = engine_of(load_model(dense_model, OPTIONS, lambda share: None), [0])
    yield made
    made.close()


class Held(Reply):
    """Has the engine wait after each piece of text until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Delta):
            self.goes_on.wait(SECONDS)


def told(reply: Reply) -> list[object]:
    return [reply.wait().tokens, reply.scores, reply.end.reason]


def test_answers_are_those_of_one_process(pipeline: Pipeline, alone: Engine) -> None:
    """Prompts of several steps, beside each other, sampled, with a grammar, embedded."""
    answers = []
    for engine in (alone, pipeline.engine):
        asked = [
            submit(engine, random_prompt(150, i), 20, n_probs=2, **SAMPLINGS[name])
            for i, name in enumerate(("seed", "schema", "greedy"))
        ]
        answers.append([told(reply) for reply in asked])
        embedded = submit(engine, random_prompt(50), 0, wants=Embedding("mean")).wait()
        answers[-1].append(embedded.all(Embedded))
        # The prefix of a prompt that has been computed: a page is copied.
        again = submit(engine, [*random_prompt(150, 0)[:140], 5, 6], 5).wait()
        answers[-1].append([again.n_cached, again.tokens])
    assert answers[1] == answers[0]
    assert answers[0][-1][0] > 128


def test_streams_share_the_stages(
    pipeline: Pipeline, alone: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps are under way at once, of different streams; texts are as without, whoever is
    cancelled meanwhile, with a prompt of many steps beside them."""
    engine = pipeline.engine
    steps, together = engine._loop._steps, list[list[set[int]]]()
    begin = steps.begin

    def noted(plan: Plan) -> None:
        begin(plan)
        sampled = [
            {chunk.seq.id for chunk in step.plan.chunks if chunk.outputs == "last"}
            for step in steps.begun
        ]
        together.append([ids for ids in sampled if ids])

    monkeypatch.setattr(steps, "begin", noted)
    answers = []
    for each in (alone, engine):
        given_up = Reply()
        ticket = each.submit(Request(tuple(random_prompt(9)), SEEDED, 800), given_up)
        asked = [
            submit(each, random_prompt(40, i), 24, n_probs=2, **SAMPLINGS[name])
            for i, name in enumerate(("seed", "penalties"))
        ]
        asked.append(submit(each, random_prompt(240), 4))
        answers.append([told(reply) for reply in asked])
        each.cancel(ticket)
        assert given_up.wait().end.reason == "cancelled"
    assert answers[1] == answers[0]
    both = [at_once for at_once in together if len(at_once) == 2]
    assert len(both) > 20
    assert all(first.isdisjoint(second) for first, second in both)


def test_pages_run_out_under_two_steps(dense_model: Path, alone: Engine) -> None:
    """Who is paused is in none of them, and goes on later with the same text."""
    made = Pipeline(dense_model, options=replace(OPTIONS, n_ctx=192, kv_unified=True))
    asked = [submit(made.engine, random_prompt(20, i), 100, SEEDED) for i in range(4)]
    found = [told(reply) for reply in asked]
    assert made.engine._scheduler.n_preempted > 0
    assert found == [told(submit(alone, random_prompt(20, i), 100, SEEDED)) for i in range(4)]
    made.engine.close()


def test_without_another_stage_all_ends(dense_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "PATIENCE", 0.0)
    made = Pipeline(dense_model)
    reply = Held()
    made.engine.submit(Request(tuple(random_prompt(20)), SEEDED, 800), reply)
    wait_until(lambda: bool(reply.all(Delta)))
    assert made.engine.healthy
    made.broken = 1
    made.kill()
    reply.goes_on.set()
    failed = reply.wait().events[-1]
    assert isinstance(failed, Failed)
    assert "stage 1 at 127.0.0.1:" in failed.message
    assert "is gone: a process of the pipeline has ended with code -9" in failed.message
    assert not made.engine.healthy
    with pytest.raises(EngineStoppedError, match="is gone"):
        submit(made.engine, [1], 1)
    made.engine.close()


def test_a_lost_stage_is_replaced(
    dense_model: Path, alone: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was served goes on, in its middle, with the text that there would have been, when the
    second try gives another stage."""
    monkeypatch.setattr(recovery, "RETRY", 0.01)
    made = Pipeline(dense_model)

    def ask_all(engine: Engine) -> list[Reply]:
        kinds = ("seed", "schema", "penalties")
        asked = [submit(engine, random_prompt(60, i), 90, n_probs=2, **SAMPLINGS[name])
                 for i, name in enumerate(kinds)]  # fmt: skip
        return [*asked, submit(engine, random_prompt(200), 0, wants=Scoring(2))]

    replies = ask_all(made.engine)
    wait_until(lambda: len(replies[2].all(Delta)) > 5)
    made.broken = 1
    made.may_connect.clear()
    made.kill()
    wait_until(lambda: not made.engine.healthy)
    assert "is gone" in made.engine.fault
    late = submit(made.engine, random_prompt(7), 8)  # waits, too
    made.may_connect.set()
    assert [told(reply) for reply in replies] == [told(reply) for reply in ask_all(alone)]
    assert told(late) == told(submit(alone, random_prompt(7), 8))
    scored = [reply.all(PromptScored) for reply in (replies[3], ask_all(alone)[3].wait())]
    assert scored[0] == scored[1]
    assert made.engine.healthy
    made.engine.close()


def test_a_request_that_costs_stages_is_given_up(
    dense_model: Path, alone: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose steps are under way whenever a stage is lost; the engine goes on, and so it does where
    it had nothing to do when one was lost."""
    monkeypatch.setattr(recovery, "TRIES", 1)
    made = Pipeline(dense_model)
    begin = made.engine._loop._steps.begin

    def killing(plan: Plan) -> None:
        begin(plan)
        if any(chunk.seq.n_prompt == 33 for chunk in plan.chunks):  # of which two steps are needed
            made.kill()

    monkeypatch.setattr(made.engine._loop._steps, "begin", killing)
    failed = submit(made.engine, random_prompt(33), 5).wait().events[-1]
    assert isinstance(failed, Failed)
    assert failed.message.endswith("is gone, and 1 before it")
    wait_until(lambda: made.engine.healthy)
    made.may_connect.clear()
    made.kill()
    wait_until(lambda: not made.engine.healthy)
    made.may_connect.set()
    assert told(submit(made.engine, random_prompt(7), 8)) == told(
        submit(alone, random_prompt(7), 8)
    )
    made.engine.close()


def test_what_does_not_go_is_refused(dense_model: Path) -> None:
    for options, named in (
        (replace(OPTIONS, check_tensors=True, cpu_moe=True), "--check-tensors, --cpu-moe"),
        (replace(OPTIONS, speculation=SpeculationOptions(types=("draft-mtp",))), "draft-mtp"),
        (replace(OPTIONS, mmproj=dense_model), "--mmproj"),
    ):
        with pytest.raises(EngineError, match=f"--pipeline does not go with .*{named}"):
            load_model(dense_model, options, lambda share: None, [NoWire()])
    for settings, named in (
        (Settings(pipeline=2, replicas=(1, 1)), "--replicas"),
        (Settings(pipeline=2, slot_save_path="x"), "--slot-save-path"),
    ):
        with pytest.raises(EngineError, match=f"--pipeline does not go with {named}"):
            start_stages(settings)


class NoWire:
    """Nothing may be sent."""
