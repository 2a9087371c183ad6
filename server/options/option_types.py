"""Values of options that are more than a number or a name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import click


def token_bias(value: str) -> tuple[int, float]:
    """``TOKEN_ID(+/-)BIAS`` as (id, bias), for instance 15043+1 or 2-inf."""
    at = max(value.find("+"), value.find("-"))
    try:
        return int(value[:at]), float(value[at:])
    except ValueError:
        message = f"{value!r} is not a token id and a bias such as 15043+1"
        raise click.BadParameter(message) from None


def layer_count(value: str) -> str | int:
    if value in ("auto", "all"):
        return value
    if not value.removeprefix("-").isdecimal():
        raise click.BadParameter(f"{value!r} is not a number of layers, 'auto' or 'all'")
    return int(value)


class Shares(click.ParamType["tuple[float, ...]"]):
    """Numbers with commas between, as llama.cpp's -ts 3,1."""

    name = "shares"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            shares = tuple(float(part) for part in value.split(","))
        except ValueError:
            shares = ()
        if not all(0 <= share < math.inf for share in shares) or not sum(shares):
            self.fail(f"{value!r} is not a list of shares such as 3,1")
        return shares


MOST_SLOTS = 4096  # each has memory on the device


def slot_count(value: str | int) -> int:
    text = str(value)
    if text != "-1" and not (text.isdecimal() and 0 < int(text[:9]) <= MOST_SLOTS):
        raise click.BadParameter(
            f"{value!r} is neither a number of slots, 1 to {MOST_SLOTS}, nor -1"
        )
    return int(value)


def split_commas(values: Sequence[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]
