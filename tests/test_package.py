"""One package, in a checkout and in the wheel, beside others that are called kernels and serve."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import gguf_serve
import gguf_serve.kernels.opencl.sources as sources

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("server", "engine", "kernels")
DATA = (".py", ".cl", ".json", ".jinja", ".html", ".css", ".js", ".svg")
THEIRS = ("kernels", "ray[serve]")
NEEDED = ("pytest", "pytest-timeout", "hypothesis", "gguf", "jsonschema", "openai")
SMALL_SET = (
    "tests/kernels/rows/test_norm.py", "tests/engine/gguf", "tests/engine/grammar",
    "tests/server/test_app.py", "tests/server/test_launch.py",
)  # fmt: skip
IMPORT_ALL = """
import importlib, pkgutil, gguf_serve
for module in pkgutil.walk_packages(gguf_serve.__path__, "gguf_serve."):
    if not module.name.endswith(("__main__", "compile_worker", "_process", ".process")):
        importlib.import_module(module.name)
"""
IMPORTS = "import kernels, ray.serve; kernels.get_kernel; ray.serve.deployment"


def test_modules_are_the_checkout_s() -> None:
    """Not those that the links lead to: breakpoints and tracebacks name the files one edits."""
    assert list(gguf_serve.__path__) == [str(ROOT)]
    assert Path(sources.__file__) == ROOT / "kernels" / "opencl" / "sources.py"
    assert sources.SOURCES == ROOT / "kernels"


def test_there_is_a_link_for_each_folder() -> None:
    links = {path.name: path for path in (ROOT / "gguf_serve").iterdir() if path.is_symlink()}
    assert set(links) == set(FOLDERS)
    assert all(links[name].resolve() == ROOT / name for name in FOLDERS)


def test_an_older_python_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("setuptools", reason="setup.py is read by it")
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or later; .* is 3\.10\.13"):
        runpy.run_path(str(ROOT / "setup.py"))


def run(*command: str | Path) -> str:
    """What a command writes. A PYTHONPATH would put the checkout before what is installed: its
    package holds itself by a link, and whoever walks through it never ends."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=own)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build(target: Path, source: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", target, source)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, in which no earlier build has left anything."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in (*FOLDERS, "gguf_serve"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    return build(tmp_path_factory.mktemp("wheel"), copy)


class Environment:
    """A virtual environment of its own, of this interpreter or another."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        run(python, "-m", "venv", "--without-pip", folder)
        self.folder = folder

    def pip(self, *args: str | Path) -> None:
        python = self.folder / "bin" / "python"
        run(sys.executable, "-m", "pip", "--python", python, *args, "-q")

    def python(self, code: str) -> str:
        return run(self.folder / "bin" / "python", "-c", code)

    def command(self, name: str) -> str:
        return run(self.folder / "bin" / name, "--help")


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    yield Environment(tmp_path / "environment")
    shutil.rmtree(tmp_path / "environment")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_has_one_package_with_all_files(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].removesuffix(".dist-info") for name in names} == {
        "gguf_serve", "-".join(wheel.name.split("-")[:2]),
    }  # fmt: skip
    expected = {
        f"gguf_serve/{path.relative_to(ROOT)}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in DATA
    }
    assert {name for name in names if name.startswith("gguf_serve/")} == {
        "gguf_serve/__init__.py", *expected,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("last", ["ours", "theirs"])
def test_others_packages_stay_whole(wheel: Path, environment: Environment, last: str) -> None:
    """Hugging Face's kernels and Ray Serve, installed before and after, and when we are gone.

    Of the command ``serve`` there is one: of whoever was installed last. pip removes it with
    either, so ``gguf-serve`` is the name for environments with Ray.
    """
    ours = ("--no-deps", wheel, "click", "msgspec")  # what the help needs
    for packages in [THEIRS, ours] if last == "ours" else [ours, THEIRS]:
        environment.pip("install", *packages)
    environment.python(IMPORTS)
    assert "--model" in environment.command("gguf-serve")
    assert ("--model" in environment.command("serve")) == (last == "ours")
    environment.pip("uninstall", "-y", "gguf-serve")
    environment.python(IMPORTS)
    found = "import importlib.util as u; print(u.find_spec('gguf_serve'))"
    assert environment.python(found) == "None\n"


def interpreter(version: str) -> str | None:
    """A Python of this version: a command, or one of pyenv's."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for found in (shutil.which(f"python{version}"), *map(str, reversed(pyenv))):
        told = found and subprocess.run([found, "--version"], capture_output=True, text=True)
        if told and told.stdout.startswith(f"Python {version}."):  # shims may have none behind them
            return found
    return None


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_other_versions_of_python(wheel: Path, tmp_path: Path, version: str) -> None:
    """The wheel is installed, every module imported with warnings as errors, and a small set of
    tests of each layer run against it."""
    found = interpreter(version)
    if found is None:
        pytest.skip(f"there is no Python {version}")
    environment = Environment(tmp_path / "environment", found)
    environment.pip("install", f"{wheel}[cpu]", *NEEDED)
    python = environment.folder / "bin" / "python"
    run(python, "-W", "error", "-c", IMPORT_ALL)
    assert "--model" in environment.command("serve")
    tests = [ROOT / name for name in SMALL_SET]
    run(python, "-m", "pytest", "-o", "pythonpath=scripts tests tests/support", "-x", *tests)
