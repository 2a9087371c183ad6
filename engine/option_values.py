"""Values of options that are more than a number or a name: from text; ValueError says what is
wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

MOST_SLOTS = 4096  # each has memory on the device


def one(text: str) -> tuple[str]:
    """Of an option that may be given again."""
    return (text,)


def commas(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def token_bias(text: str) -> tuple[tuple[int, float]]:
    """``TOKEN_ID(+/-)BIAS`` as (id, bias), for instance 15043+1 or 2-inf."""
    at = max(text.find("+"), text.find("-"))
    try:
        return ((int(text[:at]), float(text[at:])),)
    except ValueError:
        raise ValueError(f"{text!r} is not a token id and a bias such as 15043+1") from None


def layer_count(text: str) -> str | int:
    if text in ("auto", "all"):
        return text
    if not text.removeprefix("-").isdecimal():
        raise ValueError(f"{text!r} is not a number of layers, 'auto' or 'all'")
    return int(text)


def shares(text: str) -> tuple[float, ...]:
    """Numbers with commas or slashes between, as llama.cpp's -ts 3,1."""
    try:
        found = tuple(float(part) for part in re.split("[,/]", text))
    except ValueError:
        found = ()
    if not all(0 <= share < math.inf for share in found) or not sum(found):
        raise ValueError(f"{text!r} is not a list of shares such as 3,1")
    return found


def mebibytes(text: str) -> tuple[int, ...]:
    """Numbers with commas between, of each device; the last of all further ones."""
    parts = re.split("[,/]", text)
    if not all(part.strip().isdecimal() and len(part) < 12 for part in parts):
        raise ValueError(f"{text!r} is not a number of MiB, or several such as 1024,2048")
    return tuple(map(int, parts))


def unescaped(text: str) -> str:
    r"""With \n, \r, \t, quotes, \\ and \x0a for what they stand for; others stay."""
    found = re.sub(rb"\\(?:x([0-9a-fA-F]{2})|([nrt'\"\\]))", _escaped, text.encode())
    return found.decode("utf-8", "replace")


def _escaped(match: re.Match[bytes]) -> bytes:
    if match[1] is not None:
        return bytes.fromhex(match[1].decode())
    return {b"n": b"\n", b"r": b"\r", b"t": b"\t"}.get(match[2], match[2])


def slot_count(text: str) -> int:
    if text != "-1" and not (text.isdecimal() and 0 < int(text[:9]) <= MOST_SLOTS):
        raise ValueError(f"{text!r} is neither a number of slots, 1 to {MOST_SLOTS}, nor -1")
    return int(text)


def replica_counts(text: str) -> tuple[int, int]:
    """``2`` or ``1:8``: the least and the most."""
    least, colon, most = text.partition(":")
    try:
        counts = int(least), int(most if colon else least)
    except ValueError:
        counts = 0, 0
    if not 1 <= counts[0] <= counts[1]:
        raise ValueError(f"{text!r} is neither a number of at least 1 nor LEAST:MOST")
    return counts


def truth(text: str) -> bool:
    return {"true": True, "false": False}[text]


KINDS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": truth, "str": str}
NEXT_KEY = re.compile(r",(?=[^,=]+=(?:int|float|bool|str):)")


def key_values(text: str) -> tuple[tuple[str, Any], ...]:
    """Metadata, commas between: llama.context_length=int:4096."""
    found = []
    for part in NEXT_KEY.split(text):
        key, _, typed = part.partition("=")
        kind, colon, value = typed.partition(":")
        try:
            found.append((key, KINDS[kind](value)))
        except (KeyError, ValueError):
            message = f"{part!r} is not KEY=TYPE:VALUE with int, float, bool or str"
            raise ValueError(message) from None
        if not key or not colon:
            raise ValueError(f"{part!r} names no key, expected KEY=TYPE:VALUE")
    return tuple(found)


def scaled_files(text: str) -> tuple[tuple[str, float], ...]:
    """Files with their scales, commas between: a.gguf:0.5,b.gguf:1."""
    found = []
    for part in text.split(","):
        path, _, scale = part.rpartition(":")
        try:
            number = float(scale)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{part!r} is not a file and a scale such as adapter.gguf:0.5")
        found.append((path, number))
        if not path:
            raise ValueError(f"{part!r} names no file, expected one such as adapter.gguf:0.5")
    return tuple(found)
