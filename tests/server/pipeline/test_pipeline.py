"""A model in two processes: the same texts and scores, and an end with a reason if one is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from asking import NO_END, SAMPLINGS, Reply, engine_of, random_prompt, submit

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import EngineError, EngineStoppedError
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Delta, Embedded, Embedding, Failed
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.speculation_options import SpeculationOptions
from gguf_serve.server.options.settings import Settings
from gguf_serve.server.pipeline.start import Processes, start_stages
from gguf_serve.server.pipeline.wire import lead

OPTIONS = EngineOptions(n_ctx=1024, n_parallel=4, n_ubatch=32, n_gpu_layers="auto")
SEEDED = SamplingParams(temperature=0.8, seed=1, logit_bias=NO_END)


class Pipeline:
    """An engine whose other stages are processes."""

    def __init__(self, path: Path, n: int = 2) -> None:
        self.processes = Processes(n - 1, None)
        wires = lead(self.processes.addresses(), self.processes.key, self.processes.end)
        self.engine = engine_of(load_model(path, OPTIONS, lambda share: None, wires), [0])

    def kill(self) -> None:
        self.processes._started[-1]._process.kill()


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


def test_a_lost_stage_ends_what_is_served(dense_model: Path) -> None:
    made = Pipeline(dense_model)
    reply = submit(made.engine, random_prompt(20), 800, SEEDED)
    until = time.monotonic() + 20
    while not reply.all(Delta):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert made.engine.healthy
    made.kill()
    failed = reply.wait().events[-1]
    assert isinstance(failed, Failed)
    assert "stage 1 at 127.0.0.1:" in failed.message
    assert failed.message.endswith("is gone")
    assert not made.engine.healthy
    with pytest.raises(EngineStoppedError, match="is gone"):
        submit(made.engine, [1], 1)
    made.engine.close()


def test_an_idle_engine_notices_the_loss(pipeline: Pipeline) -> None:
    """The last test of this pipeline."""
    pipeline.kill()
    until = time.monotonic() + 20
    while pipeline.engine.healthy:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert "is gone" in pipeline.engine.fault


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
