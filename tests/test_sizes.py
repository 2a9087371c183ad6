"""What may be how long: files, functions, and the lines of kernels (ruff sees those of Python)."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("server", "engine", "kernels", "scripts", "tests")
MOST_MODULES = {"server": 20, "engine": 20, "kernels": 20, "tests": 24}  # of a folder
MOST_LINES = {".py": 500, ".cl": 400}
MOST_COLUMNS = 100
MOST_LINES_OF_A_FUNCTION = 80


def sources(suffix: str) -> list[Path]:
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob(f"*{suffix}"))]
    assert len(found) > 10
    return found


def functions(source: str) -> Iterator[tuple[str, int]]:
    """The name of every function of a module, and how many lines it has."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("suffix", MOST_LINES)
def test_files(suffix):
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in sources(suffix)}
    too_long = {path: n for path, n in lengths.items() if n > MOST_LINES[suffix]}
    assert not too_long


def test_the_engine():
    """It has what other threads may ask for, and nothing of what its own does."""
    assert len((ROOT / "engine/engine.py").read_text("utf-8").splitlines()) <= 300


def test_folders():
    numbers = Counter(path.parent.relative_to(ROOT) for path in sources(".py"))
    too_many = {
        folder: n for folder, n in numbers.items() if n > MOST_MODULES.get(folder.parts[0], n)
    }
    assert not too_many


def test_lines_of_kernels():
    too_long = [
        f"{path}:{number}"
        for path in sources(".cl")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if len(line) > MOST_COLUMNS
    ]
    assert not too_long


def test_functions():
    lengths = sorted(
        (n, name, path) for path in sources(".py") for name, n in functions(path.read_text("utf-8"))
    )
    assert lengths[len(lengths) // 2][0] <= 10
    assert lengths[len(lengths) * 9 // 10][0] <= 30
    assert lengths[-1][0] <= MOST_LINES_OF_A_FUNCTION, lengths[-1]


def test_a_function_is_measured():
    """Whatever it is nested in, and without its decorators."""
    source = "class A:\n    @d\n    async def f(self):\n        def g():\n            return 1\n"
    assert dict(functions(source)) == {"f": 3, "g": 2}
