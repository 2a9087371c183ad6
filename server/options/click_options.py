"""From options as they are stated (engine/option.py) to click's."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import click
from click.core import ParameterSource

from gguf_serve.engine.option import (
    FALSE,
    FILE,
    FOLDER,
    TRUE,
    Choice,
    Option,
    Parsed,
    Real,
    Whole,
)

FINDINGS = "gguf_serve.findings"  # in the context's meta: the ``Findings``


class Told(click.Option):
    """An option whose bad value is noted, so that those of others are looked at too."""

    def handle_parse_result(
        self, ctx: click.Context, opts: Any, args: list[str]
    ) -> tuple[Any, list[str]]:
        try:
            return super().handle_parse_result(ctx, opts, args)
        except click.BadParameter as error:
            if FINDINGS not in ctx.meta:
                raise
            findings = ctx.meta[FINDINGS]
            where = ", ".join([*self.opts, *self.secondary_opts])
            if self.consume_value(ctx, opts)[1] is ParameterSource.DEFAULT_MAP:
                where = findings.origins[self.name]
            findings.refusals.append(f"{where}: {error.message}")
            return None, args


def unexpected(value: object, expected: str) -> str:
    return f"expected {expected}, not {value!r:.100}"


def one_of(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


class Number(click.ParamType["float"]):
    """A number within limits; a whole one where they are."""

    def __init__(self, kind: Whole | Real) -> None:
        self.name, self.kind = "number", kind
        self.read = int if isinstance(kind, Whole) else float

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            number = self.read(value)
        except ValueError:
            number = math.nan
        if not self.kind.low <= number <= self.kind.high:
            self.fail(unexpected(value, self.expected(number)), param, ctx)
        return number

    def expected(self, number: float) -> str:
        """In words; of limits that all such numbers have the one alone that it is beyond."""
        low, high, widest = self.kind.low, self.kind.high, type(self.kind)()
        limits = [
            f"at least {low:.10g}" if low != widest.low or number < low else "",
            f"at most {high:.10g}" if high != widest.high or number > high else "",
        ]
        noun = "a whole number" if self.read is int else "a number"
        return " of ".join(filter(None, [noun, " and ".join(filter(None, limits))]))


class Toggle(click.types.BoolParamType):
    """A boolean that also reads the words of llama.cpp's variables."""

    WORDS: ClassVar[dict[str, bool]] = {"enabled": True, "disabled": False}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        known = self.WORDS.get(value)
        try:
            return bool(super().convert(value, param, ctx)) if known is None else known
        except click.BadParameter:
            self.fail(unexpected(value, "on or off"), param, ctx)


class Words(click.Choice[str]):
    """One of some words; where on and off are among them, as a boolean is written too."""

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice.words)
        self.hints, self.reason = choice.hints, choice.reason

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self.hints and param is not None and ctx is not None:
            ctx.meta[FINDINGS].hint(f"{param.opts[-1]} {value}", self.reason)
            return None
        for word, spellings in (("on", TRUE), ("off", FALSE)):
            if word in self.choices and str(value).lower() in spellings:
                return word
        if value not in self.choices:
            self.fail(unexpected(value, one_of(self.choices)), param, ctx)
        return value


class Place(click.ParamType["str"]):
    """The path of a file, which may be made later, or of a folder that is there."""

    name = "path"

    def __init__(self, is_folder: bool) -> None:
        self.is_folder = is_folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if self.is_folder and not os.path.isdir(value):
            self.fail(unexpected(value, "a folder that is there"), param, ctx)
        if not self.is_folder and os.path.isdir(value):
            self.fail(f"expected a file, and {value!r} is a folder", param, ctx)
        return str(value)


class Read(click.ParamType["Any"]):
    """What a function makes of the text."""

    def __init__(self, parsed: Parsed) -> None:
        self.name, self.parse = parsed.metavar, parsed.parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def click_type(option: Option) -> click.ParamType[Any]:
    stated = option.type
    if stated is None:
        return Toggle()
    if stated is FILE or stated is FOLDER:
        return Place(stated is FOLDER)
    if isinstance(stated, Choice):
        return Words(stated)
    if isinstance(stated, Whole | Real):
        return Number(stated)
    return Read(stated)


def click_option(name: str, option: Option) -> click.Option:
    """Its value is None, or empty for one that may be given again, where it is not given."""
    kind: dict[str, Any] = {}
    if option.type is None:
        kind = {"is_flag": True}
    elif option.bare is not None:
        kind = {"is_flag": False, "flag_value": option.bare}
    return Told(
        [name, *option.flags],
        type=click_type(option),
        default=None,
        multiple=option.multiple,
        nargs=2 if option.pair else 1,
        **kind,
    )
