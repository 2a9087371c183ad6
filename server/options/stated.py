"""The options that are stated at the fields of a dataclass and of its parts, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from gguf_serve.engine.option import Choice, Option, Real, Whole

T = TypeVar("T")


class Stated(NamedTuple):
    """An option under a name of its own: those of the parts and the field, joined."""

    name: str
    default: Any
    option: Option


def stated(kind: Any, prefix: str = "") -> Iterator[Stated]:
    """The options of a dataclass and of its parts."""
    for field in fields(kind):
        name = f"{prefix}{field.name}"
        option = field.metadata.get("option")
        if option is not None and option.flags:
            yield Stated(name, field.default, option)
        elif part := part_of(field):
            yield from stated(part, f"{name}__")


def part_of(field: Field[Any]) -> type[Any] | None:
    """The dataclass that makes the field's default, if one does."""
    factory = field.default_factory
    return factory if isinstance(factory, type) and is_dataclass(factory) else None


def made(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """The dataclass with those of ``stated``'s options that are given; the defaults otherwise."""
    given = {
        field.name: value
        for field in fields(kind)  # type: ignore[arg-type]
        if (value := _value(field, values, f"{prefix}{field.name}")) is not None
    }
    return kind(**given)


def _value(field: Field[Any], values: Mapping[str, Any], name: str) -> Any:
    if part := part_of(field):
        return made(part, values, f"{name}__")
    value = values.get(name)
    option = field.metadata.get("option")
    if option is not None and option.multiple:
        return tuple(chain.from_iterable(value)) if value else None
    return value


def spellings(option: Option) -> list[str]:
    """All flags, those that turn off too."""
    return [flag for given in option.flags for flag in given.strip().split("/") if flag]


def placeholder(option: Option) -> str:
    """What stands for the value in the help."""
    kind = option.type
    if option.metavar is not None or kind is None:
        return option.metavar or ""
    if isinstance(kind, Choice):
        return "|".join(kind.words)
    if isinstance(kind, Whole | Real):
        return "N" if isinstance(kind, Whole) else "X"
    return kind.metavar


def default_text(default: Any, option: Option) -> str:
    """The default as it would be given; empty for none, and for a flag that only turns on."""
    if default is None or (option.type is None and not any("/" in flag for flag in option.flags)):
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return (" " if option.multiple else ";").join(map(str, default)).replace("\n", r"\n")
    return str(default)
