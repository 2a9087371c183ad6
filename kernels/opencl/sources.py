"""Where the OpenCL sources are. They include each other by their paths from here."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1]

# Of every build. The kernels are OpenCL C 1.2, in which a pointer that names no address space is
# private. Drivers take the newest 1.x unless they are told, but PoCL 6 takes 3.0, where it is
# generic, and does not go with private arrays.
OPTIONS = ("-cl-std=CL1.2", f"-I{SOURCES}")
INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)
COMMENT = re.compile(r"//.*")


@functools.cache
def with_included(source: str) -> Mapping[str, str]:
    """The texts of a .cl file and of all that it includes, by their names."""
    texts: dict[str, str] = {}
    left = [source]
    while left:
        name = left.pop()
        if name not in texts:
            texts[name], included = _read(name)
            left += included
    return texts


@functools.cache
def _read(name: str) -> tuple[str, list[str]]:
    """The text of one file, and the names of those that it includes."""
    text = (SOURCES / name).read_text(encoding="utf-8")
    return text, INCLUDE.findall(text)


@functools.cache
def _names(source: str, define: str) -> bool:
    """Whether the text of a program has this name."""
    return any(define in _code(name) for name in with_included(source))


@functools.cache
def _code(name: str) -> str:
    return COMMENT.sub("", _read(name)[0])


@functools.lru_cache(4096)
def effective(source: str, defines: tuple[str, ...]) -> tuple[str, ...]:
    """Those defines that can change a program, sorted: whose names are in its text, or in what
    another one stands for. Programs that differ in the other ones are the same code: the name of a
    tensor type, say, is for what reads its blocks, and products do not."""
    split = {define: define.partition("=") for define in defines}
    values = " ".join(value for _, _, value in split.values())
    return tuple(
        sorted(d for d, (name, *_) in split.items() if _names(source, name) or name in values)
    )


@functools.cache
def is_scalar(source: str) -> bool:
    """Whether a .cl file computes one row at a time in both families, and says so itself."""
    return "#define SIMT" in with_included(source)[source]
