"""One package, in a checkout and in the wheel, beside others that are called kernels and serve."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import gguf_serve
import gguf_serve.kernels.opencl.sources as sources

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("server", "engine", "kernels")
DATA = (".py", ".cl", ".json", ".jinja")
THEIRS = ("kernels", "ray[serve]")
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
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
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
    """A virtual environment of its own."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
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
    ours = ("--no-deps", wheel)
    for packages in [THEIRS, ours] if last == "ours" else [(*ours, "click"), THEIRS]:
        environment.pip("install", *packages)
    environment.python(IMPORTS)
    assert "--model" in environment.command("gguf-serve")
    assert ("--model" in environment.command("serve")) == (last == "ours")
    environment.pip("uninstall", "-y", "gguf-serve")
    environment.python(IMPORTS)
    found = "import importlib.util as u; print(u.find_spec('gguf_serve'))"
    assert environment.python(found) == "None\n"
