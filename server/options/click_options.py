"""From options as they are stated (engine/option.py) to click's."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import click

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

FINDINGS = "gguf_serve.findings"  # in the context's meta: an object with ``refusals``


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
            ctx.meta[FINDINGS].refusals.append(error.format_message())
            return None, args


class Finite(click.FloatRange):
    """A number with which one can reckon."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class Toggle(click.types.BoolParamType):
    """A boolean that also reads the words of llama.cpp's variables."""

    WORDS: ClassVar[dict[str, bool]] = {"enabled": True, "disabled": False}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        known = self.WORDS.get(value)
        return bool(super().convert(value, param, ctx)) if known is None else known


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
        return super().convert(value, param, ctx)


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
    if stated is FILE:
        return click.Path(dir_okay=False, path_type=str)
    if stated is FOLDER:
        return click.Path(exists=True, file_okay=False, path_type=str)
    if isinstance(stated, Choice):
        return Words(stated)
    if isinstance(stated, Whole):
        return click.IntRange(stated.low, stated.high)
    if isinstance(stated, Real):
        return Finite(stated.low, stated.high)
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
