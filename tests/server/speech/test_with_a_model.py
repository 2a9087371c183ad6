"""A small model that speaks, behind the server: what is heard is what its makers would hear."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from speech_models import projector, talker

from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.options import EngineOptions

pytestmark = pytest.mark.slow
FRAME = 1920  # samples
N_FRAMES = 20  # fewer than it says by itself


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    pytest.importorskip("gguf", reason="the gguf package writes the models")
    from random_model import build

    paths = build(talker(), tmp_path / "talker.gguf"), build(projector(), tmp_path / "mmproj.gguf")
    engine = load_engine(paths[0], EngineOptions(mmproj=paths[1], n_parallel=2))
    yield engine
    engine.close()


def said(url: str, **body: Any) -> tuple[int, ...]:
    """The samples of a text."""
    given = {"response_format": "pcm", "max_tokens": N_FRAMES, "temperature": 0} | body
    answer = httpx.post(url + "/v1/audio/speech", json=given, timeout=120)
    assert answer.status_code == 200, answer.text
    return struct.unpack(f"<{len(answer.content) // 2}h", answer.content)


def test_a_text_is_the_same_alone_and_beside_others(serve: Any, engine: Engine) -> None:
    url = serve(engine)
    texts = ["hello", "good morning"]
    alone = [said(url, input=text) for text in texts]
    assert [len(samples) for samples in alone] == [N_FRAMES * FRAME] * 2
    with ThreadPoolExecutor(2) as pool:
        beside = list(pool.map(lambda text: said(url, input=text), texts))
    for one, other in zip(alone, beside, strict=True):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 1
    assert alone[0] != alone[1]


def test_a_seed_says_what_is_heard(serve: Any, engine: Engine) -> None:
    url = serve(engine)
    heard = [said(url, input="hello", temperature=1, seed=seed) for seed in (3, 3, 4)]
    assert heard[0] == heard[1]
    assert heard[0] != heard[2]
