"""Parameters of kernels, read from their .cl files: arguments are given by name.

A kernel's parameters are written out between its parentheses, ``PAGES_ARG(type, name)`` of kv.cl
being the one macro there; the conditions among them ask only which defines there are::

    kernel void combine(global const float* y,
    #ifdef WEIGHTS
                        global const float* weights,
    #endif
                        int n_cols, float scale, global float* out) {

A launcher names what it passes, in any order, and leaves out the optional with None. An argument
that is given brings the define of its ``#ifdef``, so that the two cannot disagree.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from gguf_serve.kernels.opencl.sources import SOURCES

KERNEL = re.compile(r"^kernel\s(?:\s*__attribute__\(\(.*\)\)\s)?\s*void\s+(\w+)\(", re.MULTILINE)
PARAMETER = re.compile(
    r"(?P<pages>PAGES_ARG\()?(?:(?:global|const|volatile)\s)*(?P<type>\w+)(?P<buffer>\*)?"
    r"(?(pages),)\s+(?P<name>\w+)(?(pages)\))"
)
DIRECTIVE = re.compile(r"#\s*(ifdef|ifndef|if|elif|else|endif)\b(.*)")
DEFINED = re.compile(r"defined\((\w+)\)")
ANY_DEFINED = re.compile(r"\s*defined\(\w+\)(\s*\|\|\s*defined\(\w+\))*\s*")
# NumPy takes a microsecond for a whole number; a model's are few.
SCALARS: dict[str, Callable[[Any], Any]] = {
    "int": functools.lru_cache(4096, typed=True)(lambda value: np.int32(operator.index(value))),
    "ulong": functools.lru_cache(4096, typed=True)(lambda value: np.uint64(operator.index(value))),
    "float": np.float32,
}
FLOATS = re.compile(r"float\d*|.*scale_t")  # elements that are floats, alone or as vectors

# By the names of parameters: numbers, what has a ``buffer`` (a Tensor, a Matrix) or a tuple of
# these, None for what is left out.
Arguments = Mapping[str, object]


class ArgumentError(TypeError):
    """What a launcher passes is not what the kernel takes."""


class Condition(Struct, frozen=True):
    """Whether one of these names is defined, or none of them."""

    names: frozenset[str]
    holds: bool = True

    def met(self, defined: set[str]) -> bool:
        return self.names.isdisjoint(defined) is not self.holds


class Parameter(Struct, frozen=True):
    """type: of a scalar, or of the elements of a buffer; when: all must be met."""

    name: str
    type: str
    is_buffer: bool
    when: tuple[Condition, ...]

    @property
    def convert(self) -> Callable[[Any], Any]:
        """What makes the driver's value of an argument, or a list: a buffer for each slab."""
        if not self.is_buffer:
            return SCALARS[self.type]
        return _float_buffers if FLOATS.fullmatch(self.type) else _whole_buffers


def _float_buffers(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return [_float_buffers(one) for one in argument]
    dtype = getattr(argument, "dtype", None)
    if dtype is None or dtype.kind != "f":
        raise TypeError(f"{dtype or argument!r}, expected a buffer of floats")
    return argument.buffer


def _whole_buffers(argument: Any) -> Any:
    """Of whole numbers, or of bytes that have no one type."""
    if isinstance(argument, tuple):
        return [_whole_buffers(one) for one in argument]
    if (dtype := getattr(argument, "dtype", None)) is not None and dtype.kind == "f":
        raise TypeError(f"{dtype}, expected a buffer of whole numbers")
    return argument.buffer


class Binding(Struct, frozen=True):
    """What some arguments make of a kernel: the defines that they bring, and in the kernel's order
    the names of its parameters, each with what makes the driver's value."""

    brought: tuple[str, ...]
    parameters: tuple[tuple[str, Callable[[Any], Any]], ...]


def _refused(binding: Binding, arguments: Arguments) -> str:
    """The name of the first argument that cannot be converted."""
    for name, convert in binding.parameters:
        try:
            convert(arguments[name])
        except (TypeError, ValueError, AttributeError):
            return name
    raise AssertionError("all can be converted")


class Signature:
    """The parameters of a kernel, those of all its variants, in their order."""

    def __init__(self, source: str, name: str, parameters: tuple[Parameter, ...]) -> None:
        self.source, self.name, self.parameters = source, name, parameters
        self._bindings: dict[tuple[tuple[str, ...], tuple[str, ...]], Binding] = {}

    def bind(self, arguments: Arguments, defines: Sequence[str]) -> tuple[list[str], list[Any]]:
        """The defines with those that arguments bring, and the values in the kernel's order.

        ArgumentError names what is missing, not known or of another type.
        """
        given = tuple([name for name, value in arguments.items() if value is not None])
        key = given, tuple(defines)
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = self._binding(set(given), defines)
        try:
            values = [convert(arguments[name]) for name, convert in binding.parameters]
        except (TypeError, ValueError, AttributeError) as error:
            raise self._error(f"{_refused(binding, arguments)}: {error}") from error
        if list in map(type, values):  # slabs of pages
            values = [v for value in values for v in (value if type(value) is list else (value,))]
        return [*defines, *binding.brought], values

    def _binding(self, given: set[str], defines: Sequence[str]) -> Binding:
        """Of arguments of these names, with these defines; ArgumentError."""
        names = {define.partition("=")[0] for define in defines}
        brought = self._brought(given, names)
        wanted = [p for p in self.parameters if all(c.met(names | {*brought}) for c in p.when)]
        missing = [p.name for p in wanted if p.name not in given]
        unknown = sorted(given - {p.name for p in wanted})
        if missing or unknown:
            raise self._error(
                f"missing {missing}, not among its parameters {unknown}, with "
                f"{' '.join(sorted(names | {*brought})) or 'no defines'}"
            )
        return Binding(tuple(brought), tuple((p.name, p.convert) for p in wanted))

    def _brought(self, given: set[str], defined: set[str]) -> dict[str, None]:
        """Defines that arguments ask for: of parameters that are there only with them, but for
        those that several variants have."""
        names = [p.name for p in self.parameters]
        return {
            name: None
            for p in self.parameters
            if p.name in given and names.count(p.name) == 1
            for c in p.when
            if c.holds and len(c.names) == 1
            for name in c.names - defined
        }

    def _error(self, what: str) -> ArgumentError:
        return ArgumentError(f"{self.source}: {self.name}: {what}")


@functools.cache
def signature(source: str, name: str) -> Signature:
    """Of a kernel in a .cl file; KeyError: it has none of that name."""
    return signatures(source)[name]


@functools.cache
def signatures(source: str) -> dict[str, Signature]:
    """Of all kernels in a .cl file by name; of a name that occurs twice, the first."""
    text = (SOURCES / source).read_text(encoding="utf-8")
    found: dict[str, Signature] = {}
    for match in KERNEL.finditer(text):
        parameters = tuple(_parameters(text[match.end() :]))
        found.setdefault(match[1], Signature(source, match[1], parameters))
    return found


def _parameters(text: str) -> Iterator[Parameter]:
    """Of the text after a kernel's opening parenthesis."""
    conditions: list[list[Condition]] = []  # of the branches that enclose a line
    begun, depth = "", 0
    for line in text.split("\n"):
        if directive := DIRECTIVE.match(line):
            yield from _parameter(begun, conditions)
            begun = ""
            _enter(conditions, directive[1], directive[2])
        elif not line.startswith("#"):
            for c in line.partition("//")[0] + " ":
                depth += (c == "(") - (c == ")")
                if (c == "," and depth == 0) or depth < 0:
                    yield from _parameter(begun, conditions)
                    begun = ""
                else:
                    begun += c
                if depth < 0:
                    return


def _enter(conditions: list[list[Condition]], directive: str, names: str) -> None:
    """Change the conditions as a preprocessor's directive does."""
    if directive == "endif":
        conditions.pop()
    elif directive in ("else", "elif"):
        last = conditions[-1][-1]
        conditions[-1][-1] = Condition(last.names, not last.holds)
    else:
        conditions.append([])
    if directive in ("if", "elif"):
        if ANY_DEFINED.fullmatch(names) is None:
            raise ValueError(f"#{directive}{names} does not ask for defines alone")
        conditions[-1].append(Condition(frozenset(DEFINED.findall(names))))
    elif directive in ("ifdef", "ifndef"):
        conditions[-1].append(Condition(frozenset([names.strip()]), directive == "ifdef"))


def _parameter(text: str, conditions: list[list[Condition]]) -> Iterator[Parameter]:
    if not text.strip():
        return
    match = PARAMETER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text.strip()!r} is no parameter of a known form")
    when = tuple(condition for branch in conditions for condition in branch)
    yield Parameter(match["name"], match["type"], bool(match["buffer"]), when)
