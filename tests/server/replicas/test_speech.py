"""A text that one engine has begun to speak, and another one ends."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from asking import Reply
from msgspec.structs import replace
from replicas_here import Replicas
from speech_models import projector, talker

from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Request, Sound

pytestmark = pytest.mark.slow
N_FRAMES, FRAME = 60, 1920  # samples


class Losing(Reply):
    """Kills the host that speaks, after its first sound."""

    def __init__(self, replicas: Replicas) -> None:
        super().__init__()
        self._replicas, self._is_first = replicas, True

    def __call__(self, event: Any) -> None:
        super().__call__(event)
        if self._is_first and isinstance(event, Sound):
            self._is_first = False
            self._replicas.kill(self._replicas.serving())


def heard(engine: Any, request: Request, reply: Reply) -> bytes:
    engine.submit(request, reply)
    assert reply.wait().end.timings.predicted_n == N_FRAMES
    return b"".join(sound.pcm for sound in reply.all(Sound))


def test_what_is_heard_is_what_one_engine_says(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the gguf package writes the models")
    from random_model import build

    paths = build(talker(), tmp_path / "talker.gguf"), build(projector(), tmp_path / "mmproj.gguf")
    options = EngineOptions(mmproj=paths[1], n_parallel=2)
    engines: list[Engine] = [load_engine(paths[0], options) for _ in range(2)]
    assert engines[0].speech is not None
    (request,) = engines[0].speech.requests("hello")
    sampling = dataclasses.replace(request.sampling, temperature=1.0, seed=3)
    request = replace(request, sampling=sampling, max_tokens=N_FRAMES)
    alone = heard(engines[0], request, Reply())
    assert len(alone) == 2 * FRAME * N_FRAMES
    replicas = Replicas(engines)
    try:
        assert heard(replicas.front, request, Losing(replicas)) == alone
        assert replicas.front.n_moved == 1
    finally:
        replicas.close()
        for engine in engines:
            engine.close()
