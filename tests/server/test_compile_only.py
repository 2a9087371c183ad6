"""serve --compile-only: what it says and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import gguf_serve.engine.engine
from gguf_serve.engine.errors import EngineError
from gguf_serve.kernels.opencl.platforms import list_devices
from gguf_serve.server import cli


def run(path: Path, *options: str) -> Result:
    return CliRunner().invoke(cli.main, ["--compile-only", "-m", str(path), *options])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return path


def test_with_the_options_that_will_be_served_with(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def compile_model(*given: Any) -> tuple[int, int]:
        asked.extend(given)
        return 3, 26

    monkeypatch.setattr(gguf_serve.engine.engine, "compile_model", compile_model)
    result = run(model, "-c", "512", "-ctk", "q8_0")
    assert result.exit_code == 0
    assert "26 programs are ready, 3 of them compiled now\n" in result.output
    assert asked[0] == model
    assert (asked[1].n_ctx, asked[1].cache_type_k) == (512, "q8_0")


def test_what_cannot_be_compiled(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_model(*given: Any) -> tuple[int, int]:
        raise EngineError("compiled programs cannot be kept in /cache")

    monkeypatch.setattr(gguf_serve.engine.engine, "compile_model", compile_model)
    result = run(model)
    assert result.exit_code == 1
    assert "serve: compiled programs cannot be kept in /cache\n" in result.output


def test_nothing_is_missing_the_second_time(conformance_model: Callable[[str], Path]) -> None:
    found = [info for info in list_devices() if "ortable" not in info.platform]
    if not found:
        pytest.skip("no device whose programs can be kept")
    for _ in range(2):
        options = ("-c", "256", "--device", str(found[0].index))
        result = run(conformance_model("llama-dense"), *options)
        assert result.exit_code == 0
    assert "0 of them compiled now" in result.output
