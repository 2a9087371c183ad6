"""Engines for a front, which tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import engine_of

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions

OPTIONS = EngineOptions(n_ctx=4096, n_parallel=4, n_ubatch=32, n_gpu_layers=0, kernel_family="simd")


@pytest.fixture(scope="module")
def engines(dense_model: Path) -> Iterator[list[Engine]]:
    made = [engine_of(load_model(dense_model, OPTIONS, lambda share: None), [0]) for _ in range(2)]
    yield made
    for engine in made:
        assert engine.healthy
        engine.close()
