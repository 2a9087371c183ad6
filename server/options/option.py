"""How an option is written down: a field of Settings with its flags beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import click

INT32_MAX = 2**31 - 1


class Finite(click.FloatRange):
    """A number with which one can reckon."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


FILE = click.Path(dir_okay=False, path_type=str)
NUMBER = Finite()
NATURAL = click.IntRange(0, INT32_MAX)
INTEGER = click.IntRange(-INT32_MAX, INT32_MAX)
COUNT = click.IntRange(1, INT32_MAX)
OR_ALL = click.IntRange(-1, INT32_MAX)
PLACEHOLDERS = {
    "file": "FILE",
    "text": "TEXT",
    "integer": "N",
    "integer range": "N",
    "float": "X",
    "float range": "X",
}


@dataclass(frozen=True, slots=True)
class Option:
    """How a field of Settings is given on the command line or in the environment."""

    flags: tuple[str, ...]
    group: str
    help: str
    env: str | None = None
    metavar: str | None = None
    type: Any = None  # click's type or a function of the text; None: a flag without a value
    multiple: bool = False
    bare: str | None = None  # the value of the option given without one

    @property
    def placeholder(self) -> str:
        """What stands for the value in the help."""
        if self.metavar is not None or self.type is None:
            return self.metavar or ""
        if isinstance(self.type, click.Choice):
            return "|".join(self.type.choices)
        return PLACEHOLDERS[self.type.name]


class Toggle(click.types.BoolParamType):
    """A boolean that also reads the words of llama.cpp's variables."""

    WORDS: ClassVar[dict[str, bool]] = {"enabled": True, "disabled": False}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        known = self.WORDS.get(value)
        return bool(super().convert(value, param, ctx)) if known is None else known


def option(
    *flags: str,
    group: str,
    help: str,
    default: Any,
    env: str | None = None,
    metavar: str | None = None,
    type: Any = None,
    multiple: bool = False,
    bare: str | None = None,
) -> Any:
    """A field of Settings; ``env`` is the variable's name after LLAMA_ARG_, or all of it."""
    whole = env is None or env.startswith(("LLAMA_", "GGUF_SERVE_", "MTMD_"))
    name = env if whole else f"LLAMA_ARG_{env}"
    given = Option(flags, group, help, name, metavar, type, multiple, bare)
    return field(default=default, metadata={"option": given})
