"""What a start imports, and what it begins before that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gguf_serve.engine import ahead
from gguf_serve.server.cli import main

# What a server that has been asked for nothing yet, or for text alone, can do without.
LATER = [
    "PIL", "soundfile", "httpx", "jinja2", "openai", "scipy", "yaml", "mako", "prometheus_client",
    "pyopencl.array", "numpy.f2py", "numpy.testing", "multiprocessing.pool", "unittest", "pytest",
    "statistics", "fractions",
]  # fmt: skip
BEFORE_ALL = ["numpy", "pyopencl", "asyncio", "uvicorn", "starlette", "tokenizers"]


def modules_after(program: str) -> set[str]:
    """What a process has imported after it ran some lines."""
    result = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return set(result.stdout.split())


def test_what_a_start_imports() -> None:
    found = modules_after("import gguf_serve.server.launch, gguf_serve.engine.engine")
    assert "gguf_serve.engine.loading.loader" in found
    assert sorted(found.intersection(LATER)) == []


def test_what_comes_ahead_needs_none_of_that() -> None:
    """It is begun while the rest is imported."""
    found = modules_after("import gguf_serve.server.cli, gguf_serve.engine.ahead")
    assert sorted(found.intersection(BEFORE_ALL)) == []


def test_children_are_begun_on_the_first_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = list[int]()
    monkeypatch.setattr(ahead, "begin_workers", begun.append)
    monkeypatch.setattr(ahead, "features_path", lambda: tmp_path / "features.json")
    monkeypatch.setenv(ahead.BLAS_THREADS, "1")
    ahead.begin_ahead(names_device=True)
    assert len(begun) == 1
    (tmp_path / "features.json").touch()
    ahead.begin_ahead(names_device=True)
    assert len(begun) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], False),
        (["--device", "portable"], True),
        (["--override-tensor", "ffn=CPU"], True),
        (["--mmproj-device", "0"], True),
    ],
)
def test_drivers_that_nobody_would_choose(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], named: bool
) -> None:
    """Whoever names a device finds all of them, by the numbers that --list-devices gives."""
    (model := tmp_path / "model.gguf").write_bytes(b"GGUF")
    asked = list[bool]()

    def begin(*, names_device: bool) -> None:
        asked.append(names_device)
        raise SystemExit

    monkeypatch.setattr(ahead, "begin_ahead", begin)
    CliRunner().invoke(main, ["-m", str(model), *arguments])
    model.write_bytes(b"none")
    CliRunner().invoke(main, ["-m", str(model), *arguments])
    assert asked == [named]
