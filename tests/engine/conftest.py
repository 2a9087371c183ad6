"""Fixtures of the engine's tests, of which ``device`` and ``programs`` are in opencl_devices.py,
and so is what tests of whole models run on daily."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asking import engine_of
from opencl_devices import called_functions, device, programs, pytest_collection_modifyitems

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.loading.loader import Model, load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.serving.disk import disk_options
from gguf_serve.kernels.opencl.platforms import list_devices

__all__ = ["called_functions", "device", "programs", "pytest_collection_modifyitems"]


@pytest.fixture(scope="session")
def vision_folder(shared: Path) -> Path:
    """Reference data of projectors, see vision_data.py."""
    folder = shared / "conformance" / "vision"
    if not folder.is_dir():
        pytest.skip("there is no conformance/vision in ../shared")
    return folder


@pytest.fixture
def start_engine(
    conformance_model: Callable[[str], Path],
) -> Iterator[Callable[[str, EngineOptions], Engine]]:
    """Loads a small model and starts its engine, closed at the end of the test."""
    engines: list[Engine] = []

    def started(name: str, options: EngineOptions) -> Engine:
        if not list_devices():
            pytest.skip("no OpenCL device")
        model = load_model(conformance_model(name), options, lambda share: None)
        engines.append(engine_of(model, disk=disk_options(options)))
        return engines[-1]

    yield started
    for engine in engines:
        engine.close()


@pytest.fixture
def start_sound(
    conformance_model: Callable[[str], Path],
) -> Iterator[Callable[[str, EngineOptions], tuple[Model, Engine]]]:
    """The same with token 0 as the end; each is healthy, and no page is left used, at the end."""
    engines: list[Engine] = []

    def started(name: str, options: EngineOptions) -> tuple[Model, Engine]:
        if not list_devices():
            pytest.skip("no OpenCL device")
        model = load_model(conformance_model(name), options, lambda share: None)
        engines.append(engine_of(model, [0]))
        return model, engines[-1]

    yield started
    for engine in engines:
        assert engine.healthy
        assert engine.stats().n_pages_used == 0
        engine.close()
