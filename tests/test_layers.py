"""server -> engine -> kernels, never back: the imports of every module are read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# what no module of a package may import
FORBIDDEN = {
    "kernels": {"engine", "server"},
    "engine": {"server", "starlette", "asyncio", "click", "pyopencl"},
    "server": {"kernels", "numpy", "pyopencl"},
}


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that ``source``, a module of ``package``, imports.

    Also where it does so inside a function, under TYPE_CHECKING, relatively, or by a call
    of import_module or __import__ with a literal name.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                yield node.lineno, ".".join([*above, *filter(None, [node.module])])
            else:
                yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def arrows_back(source: str, package: str) -> list[tuple[int, str]]:
    """The imports of a module of ``package`` that its layer must not have."""
    forbidden = FORBIDDEN[package.split(".")[0]]
    return [(line, name) for line, name in imported(source, package)
            if name.split(".")[0] in forbidden]  # fmt: skip


def modules(layer: str) -> list[Path]:
    return sorted((ROOT / layer).rglob("*.py"))


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_no_import_points_back(layer):
    assert len(modules(layer)) > 1
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(layer)
        for line, name in arrows_back(
            path.read_text(encoding="utf-8"), ".".join(path.relative_to(ROOT).parts[:-1])
        )
    ]
    assert not found, "\n".join(found)


def test_the_check_reaches_real_imports():
    """Were nothing found at all, the test above could not fail."""
    names = {
        layer: {
            name.split(".")[0]
            for path in modules(layer)
            for _, name in imported(path.read_text(encoding="utf-8"), layer)
        }
        for layer in FORBIDDEN
    }
    assert "pyopencl" in names["kernels"]
    assert {"kernels", "numpy"} <= names["engine"]
    assert {"engine", "starlette"} <= names["server"]


@pytest.mark.parametrize(
    ("package", "source", "name"),
    [
        ("kernels", "import engine.gguf", "engine.gguf"),
        ("kernels", "from engine import gguf", "engine"),
        ("kernels", "def f():\n    from server.app import x", "server.app"),
        ("engine", "import json, asyncio", "asyncio"),
        ("engine", "from starlette.requests import Request", "starlette.requests"),
        ("engine", "import click as c", "click"),
        ("engine", "import pyopencl", "pyopencl"),
        ("engine.chat", "if TYPE_CHECKING:\n    import server.app", "server.app"),
        ("engine", "import importlib\nimportlib.import_module('pyopencl.array')", "pyopencl.array"),
        ("server", "__import__('kernels')", "kernels"),
        ("server", "import numpy.typing as npt", "numpy.typing"),
        ("server", "from kernels.device import Device", "kernels.device"),
        ("server", "import pyopencl as cl", "pyopencl"),
    ],
)
def test_an_arrow_back_is_seen(package, source, name):
    assert [found for _, found in arrows_back(source, package)] == [name]


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("kernels", "import pyopencl as cl, numpy"),
        ("engine", "from kernels.device import Device"),
        ("engine", "import enginery, serverless"),
        ("server", "import engine.engine, starlette, asyncio, click"),
    ],
)
def test_an_arrow_onward_is_not(package, source):
    assert arrows_back(source, package) == []


@pytest.mark.parametrize(
    ("package", "source", "name"),
    [
        ("engine.chat", "from . import template", "engine.chat"),
        ("engine.chat", "from .template import x", "engine.chat.template"),
        ("engine.chat", "from ..gguf import x", "engine.gguf"),
        ("engine", "from .. import x", ""),
    ],
)
def test_relative_imports_are_resolved(package, source, name):
    assert [found for _, found in imported(source, package)] == [name]
