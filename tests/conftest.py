"""Fixtures for all tests: the test data that lies beside the checkout."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test data that is kept outside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with the test data is not there")
    return SHARED


@pytest.fixture(scope="session")
def conformance_model(
    shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Builds the small random model of a spec, as "llama-dense", once; returns its path."""
    pytest.importorskip("gguf", reason="the gguf package writes the models")
    script = shared / "conformance" / "make_model.py"
    if not script.is_file():
        pytest.skip(f"{script.relative_to(shared.parent)} is not there")
    spec = importlib.util.spec_from_file_location("make_model", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("conformance")

    @cache
    def build(name: str) -> Path:
        return Path(module.build(name, folder / f"{Path(name).stem}.gguf"))

    return build
