"""serve --compile-only, also with --warmup-prompt: what it says and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import gguf_serve.engine.engine
from gguf_serve.engine.errors import EngineError
from gguf_serve.kernels.opencl.platforms import list_devices
from gguf_serve.server import cli, compile_only


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


@pytest.fixture
def serve_command(tmp_path: Path) -> Any:
    """Runs the command with a file that begins like a model, and a prompt."""
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    (tmp_path / "system.txt").write_text("Be brief.")

    def run(*options: str) -> Any:
        given = ("-m", str(tmp_path / "tiny.gguf"), "--warmup-prompt", str(tmp_path / "system.txt"))
        return CliRunner().invoke(cli.main, [*given, *options])

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--compile-only",), "--warmup-prompt with --compile-only needs --cache-disk"),
        (
            ("--cache-key-isolation", "--api-key", "a,b"),
            "--warmup-prompt and --cache-key-isolation cannot both be given",
        ),
        (("--warmup-prompt", "/nowhere/x"), "--warmup-prompt: cannot read /nowhere/x: "),
        (("--warmup-prompt", "no.json"), "--warmup-prompt: no.json is not JSON: "),
        (("--warmup-prompt", "list.json"), "--warmup-prompt: list.json has no messages: expected "),
    ],
)
def test_options_that_do_not_go_with_it(
    serve_command: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("no.json").write_text("{")
    Path("list.json").write_text("[]")
    result = serve_command(*options)
    assert result.exit_code == 1
    assert f"serve: {message}" in result.output


@pytest.mark.parametrize(
    ("least", "is_kept", "code", "message"),
    [
        ("16", True, 0, "25 tokens of --warmup-prompt are in --cache-disk\n"),
        ("16", False, 1, "serve: --cache-disk /kv cannot be filled\n"),
        ("512", True, 1, "has 25 tokens, fewer than --cache-disk-min-tokens 512\n"),
    ],
)
def test_filling_the_cache_of_an_image(
    serve_command: Any,
    fakes: Any,
    monkeypatch: pytest.MonkeyPatch,
    least: str,
    is_kept: bool,
    code: int,
    message: str,
) -> None:
    engine = fakes.engine()
    monkeypatch.setattr(engine, "wait_until_kept", lambda seconds: is_kept, raising=False)
    monkeypatch.setattr(gguf_serve.engine.engine, "compile_model", lambda *given: (0, 26))
    monkeypatch.setattr(compile_only, "load_model", lambda *given: engine)
    result = serve_command(
        "--compile-only", "--cache-disk", "/kv", "--cache-disk-min-tokens", least
    )
    assert (result.exit_code, len(engine.requests)) == (code, 1)
    assert message in result.output
