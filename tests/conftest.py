"""Fixtures for all tests: test data, of which most lies beside the checkout."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from conformance_data import read_spec

from gguf_serve.engine.loading.compiling import Compiling
from gguf_serve.kernels.opencl.compiling import compiler
from gguf_serve.kernels.opencl.compiling.compiler import Compiler
from gguf_serve.kernels.opencl.compiling.worker import Worker, keep_worker
from gguf_serve.kernels.opencl.platforms import list_devices

SHARED = Path(__file__).resolve().parents[2] / "shared"


gc.disable()  # collecting ten thousand tests makes no garbage, and took 40 % of the time looking


def pytest_collection_finish() -> None:
    """What is there by now stays, and is not looked through again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def nothing_aside() -> Iterator[None]:
    """No engine of these processes compiles for later steps, which would keep other tests from
    their processors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Compiling, "continue_later", lambda self: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def compilers_go_on() -> Iterator[None]:
    """A process that compiles for one engine does so for the next: each takes half a second of a
    processor to come up, as much as three programs."""

    def keep(self: Compiler, worker: Worker) -> None:
        with self._changed:
            self._workers.discard(worker)
        keep_worker(worker)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Compiler, "_close", keep)
        patch.setattr(compiler, "end_spare_workers", lambda: None)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test data that is kept outside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with the test data is not there")
    return SHARED


@pytest.fixture(scope="session")
def conformance_model(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """Builds the small random model of a spec once, and returns its path.

    The spec is given by its name, as "llama-dense", or its path.
    """
    pytest.importorskip("gguf", reason="the gguf package writes the models")
    import random_model

    @cache
    def build(name: str) -> Path:
        stem = Path(name).stem  # of a model and of its projector, perhaps
        return random_model.build(read_spec(name), tmp_path_factory.mktemp(stem) / f"{stem}.gguf")

    return build


@pytest.fixture(scope="session")
def dense_model(conformance_model: Callable[[str], Path]) -> Path:
    """A llama of two layers, for tests of what serves it."""
    if not list_devices():
        pytest.skip("no OpenCL device")
    return conformance_model("llama-dense")
