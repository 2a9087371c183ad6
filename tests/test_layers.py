"""server -> engine -> kernels, and so do their rooms: the imports of every module are read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "gguf_serve"

# what no module of a package may import
FORBIDDEN = {
    "kernels": {"engine", "server"},
    "engine": {"server", "starlette", "asyncio", "click", "pyopencl"},
    "server": {"kernels", "numpy", "pyopencl"},
}
# Folders, and modules beside them; each imports of its package itself and those before it.
ROOMS = {
    "kernels": "opencl quantization rows matrix attention recurrent profile",
    "engine": "errors ahead option option_values child held disk_cache gguf text media grammar "
    "sampling_params speculation_options request options chat architecture recording layers "
    "encoders speech model scheduling forward speculation sampling loading completion stats "
    "serving engine",
    "server": "version options account errors interface adapters http kept tools batches requests "
    "speech dialects page api_page openapi idle tracing app demo configure sources sockets logs "
    "summary doctor replicas pipeline launch compile_only cli container __main__",
}


@cache  # three tests ask for those of every module
def imported(source: str, package: str) -> tuple[tuple[int, str], ...]:
    """Line and full name of everything that ``source``, a module of ``package``, imports.

    Also where it does so inside a function, under TYPE_CHECKING, relatively, or by a call
    of import_module or __import__ with a literal name. What is taken from a module counts
    as a name of it, since it may be a module.
    """
    return tuple(_imported(ast.parse(source), package))


def _imported(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = [*(above if node.level else []), *filter(None, [node.module])]
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def layer_and_room(name: str) -> tuple[str, str]:
    """Of ``gguf_serve.engine.layers.rank``: engine and layers. Of another's: itself, and ""."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return parts[0], ""
    return ".".join(parts[1:2]), ".".join(parts[2:3])


def arrows_back(source: str, package: str) -> list[tuple[int, str]]:
    """The imports of a module of ``package`` that its layer must not have."""
    layer = layer_and_room(package)[0]
    return [
        (line, name)
        for line, name in imported(source, package)
        if layer_and_room(name)[0] in FORBIDDEN[layer] or name.split(".")[0] in FORBIDDEN
    ]


def modules(layer: str) -> dict[str, Path]:
    """The modules of a layer by their names."""
    found = {}
    for path in sorted((ROOT / layer).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join([PACKAGE, *parts]).removesuffix(".__init__")] = path
    return found


def package_of(name: str, path: Path) -> str:
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


@cache
def imports_between_modules() -> dict[str, dict[str, int]]:
    """Of each module the modules that it imports, with a line that does."""
    known = {name: path for layer in FORBIDDEN for name, path in modules(layer).items()}
    result: dict[str, dict[str, int]] = {}
    for module, path in known.items():
        result[module] = {}
        for line, name in imported(path.read_text(encoding="utf-8"), package_of(module, path)):
            owner = name if name in known else name.rpartition(".")[0]
            if owner in known and owner != module:
                result[module][owner] = line
    return result


def rooms_back(layer: str, graph: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Imports between the rooms of a layer that go the wrong way."""
    rank = {room: i for i, room in enumerate(ROOMS[layer].split())}
    found = []
    for module, targets in graph.items():
        own, room = layer_and_room(module)
        if own != layer or not room:
            continue
        for target, line in targets.items():
            other, its_room = layer_and_room(target)
            if other == layer and its_room and rank[its_room] > rank[room]:
                found.append(f"{module}:{line} imports {target}")
    return found


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_no_import_points_back(layer):
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for module, path in modules(layer).items()
        for line, name in arrows_back(path.read_text(encoding="utf-8"), package_of(module, path))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_no_import_between_rooms_points_back(layer):
    found = rooms_back(layer, imports_between_modules())
    assert not found, "\n".join(found)


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_every_module_has_a_room(layer):
    rooms = {layer_and_room(name)[1] for name in modules(layer)} - {""}
    assert rooms == set(ROOMS[layer].split())


def test_no_dialect_imports_another():
    """What several of them need is in ``requests``."""
    inside = re.compile(rf"{PACKAGE}\.server\.dialects\.(\w+)\.\w+")
    pairs = [
        (module, target, inside.fullmatch(module), inside.fullmatch(target))
        for module, targets in imports_between_modules().items()
        for target in targets
    ]
    assert any(own and other for _, _, own, other in pairs)
    found = [
        f"{module} imports {target}"
        for module, target, own, other in pairs
        if own and other and own[1] != other[1]
    ]
    assert not found, "\n".join(found)


def test_no_modules_import_each_other():
    """Not in a circle either, and not inside functions."""
    try:
        TopologicalSorter(imports_between_modules()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_the_check_reaches_real_imports():
    """Were nothing found at all, the tests above could not fail."""
    names = {
        layer: {
            layer_and_room(name)[0]
            for module, path in modules(layer).items()
            for _, name in imported(path.read_text(encoding="utf-8"), package_of(module, path))
        }
        for layer in FORBIDDEN
    }
    assert "pyopencl" in names["kernels"]
    assert {"kernels", "numpy"} <= names["engine"]
    assert {"engine", "starlette"} <= names["server"]
    graph = imports_between_modules()
    assert f"{PACKAGE}.kernels.opencl.tape" in graph[f"{PACKAGE}.kernels.rows.norm"]
    assert f"{PACKAGE}.engine.serving.loop" in graph[f"{PACKAGE}.engine.engine"]


@pytest.mark.parametrize(
    ("layer", "module", "target"),
    [
        ("engine", "layers.feed_forward.ffn", "model.decoder"),
        ("engine", "recording.step", "layers.feed_forward.ffn"),
        ("engine", "errors", "gguf.file"),
        ("engine", "stats", "engine"),
        ("kernels", "matrix.matmul", "attention.kv"),
        ("server", "requests.fields", "dialects.openai.shapes"),
    ],
)
def test_an_import_of_a_later_room_is_seen(layer, module, target):
    names = [f"{PACKAGE}.{layer}.{name}" for name in (module, target)]
    assert rooms_back(layer, {names[0]: {names[1]: 1}}) == [f"{names[0]}:1 imports {names[1]}"]
    assert rooms_back(layer, {names[1]: {names[0]: 1}}) == []


@pytest.mark.parametrize(
    ("package", "source", "name"),
    [
        ("kernels", "import gguf_serve.engine.gguf", "gguf_serve.engine.gguf"),
        ("kernels", "from gguf_serve.engine import gguf", "gguf_serve.engine.gguf"),
        ("kernels", "from gguf_serve import engine", "gguf_serve.engine"),
        ("kernels.rows", "from ...engine import gguf", "gguf_serve.engine.gguf"),
        ("kernels", "def f():\n    from gguf_serve.server.app import x", "gguf_serve.server.app.x"),
        ("engine", "import json, asyncio", "asyncio"),
        ("engine", "from starlette.requests import Request", "starlette.requests.Request"),
        ("engine", "import click as c", "click"),
        ("engine", "import pyopencl", "pyopencl"),
        ("engine.chat", "if TYPE_CHECKING:\n    import gguf_serve.server", "gguf_serve.server"),
        ("engine", "import importlib\nimportlib.import_module('pyopencl.array')", "pyopencl.array"),
        ("server", "__import__('gguf_serve.kernels')", "gguf_serve.kernels"),
        ("server", "import numpy.typing as npt", "numpy.typing"),
        ("server", "import pyopencl as cl", "pyopencl"),
        ("server", "import engine.engine", "engine.engine"),  # another distribution's
        ("engine", "from kernels import Device", "kernels.Device"),
    ],
)
def test_an_arrow_back_is_seen(package, source, name):
    assert [found for _, found in arrows_back(source, f"{PACKAGE}.{package}")] == [name]


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("kernels", "import pyopencl as cl, numpy"),
        ("engine", "from gguf_serve.kernels.opencl.device import Device"),
        ("engine", "import enginery, serverless"),
        ("server", "import gguf_serve.engine.engine, starlette, asyncio, click"),
    ],
)
def test_an_arrow_onward_is_not(package, source):
    assert arrows_back(source, f"{PACKAGE}.{package}") == []


@pytest.mark.parametrize(
    ("package", "source", "name"),
    [
        ("engine.chat", "from . import template", "engine.chat.template"),
        ("engine.chat", "from .template import x", "engine.chat.template.x"),
        ("engine.chat", "from ..gguf import x", "engine.gguf.x"),
        ("engine", "from .. import x", "x"),
    ],
)
def test_relative_imports_are_resolved(package, source, name):
    assert [found for _, found in imported(source, package)] == [name]
