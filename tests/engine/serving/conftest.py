"""Fixtures of the cache on disk: a folder, an engine that many tests share, and further ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from asking import DISK, SECONDS, Start, engine_of

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.serving.disk import disk_options
from gguf_serve.kernels.opencl.platforms import list_devices


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk") / "kv"


@pytest.fixture(scope="module")
def engine(conformance_model: Callable[[str], Path], folder: Path) -> Iterator[Engine]:
    """Two slots of 512 tokens."""
    if not list_devices():
        pytest.skip("no OpenCL device")
    options = replace(DISK, cache_disk=str(folder))
    model = load_model(conformance_model("llama-dense"), options, lambda share: None)
    engine = engine_of(model, disk=disk_options(options))
    assert engine._disk is not None
    engine._disk._loads._speed = lambda: 0.0  # so small a model computes as fast as a disk reads
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def settled(request: pytest.FixtureRequest) -> None:
    """The test before has left nothing to be written to the shared engine's folder."""
    if "engine" in request.fixturenames:
        request.getfixturevalue("engine").wait_until_kept(SECONDS)


@pytest.fixture
def start(start_engine: Callable[[str, EngineOptions], Engine], folder: Path) -> Start:
    """Starts a model with the folder."""
    return lambda name="llama-dense", **changes: start_engine(
        name, replace(DISK, cache_disk=str(folder), **changes)
    )
