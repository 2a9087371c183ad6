"""How an option is stated: once, with its flags, at the field of the dataclass that acts on it.

Such a dataclass is ``EngineOptions`` or ``SamplingParams`` here, and the server has its own. The
command line, the variables, the fields of requests and the docs are derived from what stands
there (``server/options``); nothing here knows how.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any

from msgspec import Struct

INT32_MAX = 2**31 - 1
LARGEST = 1e9  # of what is added to a logit, or multiplies or divides it


class Whole(Struct, frozen=True):
    """A whole number; one outside of ``low`` to ``high`` is refused.

    ``clamp``: what a request's number is moved into instead, as llama-server does.
    """

    low: int = -INT32_MAX
    high: int = INT32_MAX
    clamp: tuple[int, int] | None = None


class Real(Struct, frozen=True):
    """A finite number, with limits as of ``Whole``."""

    low: float = -LARGEST
    high: float = LARGEST
    clamp: tuple[float, float] | None = None


class Choice(Struct, frozen=True):
    """One of some words; true, 1 and enabled stand for "on", their opposites for "off".

    A word of ``hints``, which is one of llama-server's, is taken as the default with a line of
    warning that ends so.
    """

    words: tuple[str, ...]
    hints: tuple[str, ...] = ()
    reason: str = ""


class Parsed(Struct, frozen=True):
    """What ``parse`` makes of the text; ValueError says what is wrong with it."""

    metavar: str
    parse: Callable[[str], Any]


TEXT = Parsed("TEXT", str)
FILE = Parsed("FILE", str)
FOLDER = Parsed("FOLDER", str)  # one that is there
INTEGER = Whole()
NATURAL = Whole(0)
COUNT = Whole(1)
OR_ALL = Whole(-1)
NUMBER = Real()
CACHE_TYPE = Choice(("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"))
TRUE = ("on", "true", "1", "enabled")
FALSE = ("off", "false", "0", "disabled")


def switch(text: str) -> bool:
    """Of an option with the value on or off."""
    word = text.lower()
    if word not in TRUE + FALSE:
        raise ValueError(f"{text!r} is neither on nor off")
    return word in TRUE


SWITCH = Parsed("on|off", switch)


class Option(Struct, frozen=True):
    """What is known of an option beside its name and default, which are the field's.

    ``flags`` as "--on/--off" where there is one for each value; ``type`` None: a flag without a
    value. ``multiple``: may be given again, each time with a tuple, and all are joined. ``bare``:
    the value of the option given without one. ``pair``: it takes two values.
    """

    flags: tuple[str, ...]
    help: str
    group: str
    env: str | None = None
    type: Whole | Real | Choice | Parsed | None = None
    metavar: str | None = None
    multiple: bool = False
    bare: str | None = None
    pair: bool = False


def option(
    *flags: str,
    help: str,
    default: Any,
    group: str,
    env: str | None = None,
    type: Whole | Real | Choice | Parsed | None = None,
    metavar: str | None = None,
    multiple: bool = False,
    bare: str | None = None,
    pair: bool = False,
) -> Any:
    """A field of a dataclass; ``env``: its variable, a name of llama-server's without the prefix
    LLAMA_ARG_, or a whole one."""
    whole = env is None or env.startswith(("LLAMA_", "GGUF_SERVE_", "MTMD_", "HF_TOKEN"))
    name = env if whole else f"LLAMA_ARG_{env}"
    stated = Option(flags, help, group, name, type, metavar, multiple, bare, pair)
    return field(default=default, metadata={"option": stated})
