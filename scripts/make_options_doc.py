"""Write docs/options.md from the options as they are stated in the code.

    python scripts/make_options_doc.py

tests/scripts/test_make_options_doc.py says when that has been forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from gguf_serve.engine.option import Option
from gguf_serve.engine.sampling_params import GROUP as SAMPLING
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.server.options.llama_options import HINTS, REFUSED, Foreign, names
from gguf_serve.server.options.settings import GROUPS, Settings
from gguf_serve.server.options.stated import Stated, default_text, placeholder, spellings, stated

PATH = Path(__file__).resolve().parents[1] / "docs" / "options.md"
HEAD = """# Options

Written by `scripts/make_options_doc.py` from the code; `serve --help` prints the same. An option
given on the command line counts more than its variable. Words with two values are read as
llama-server reads them: `on`, `true`, `1`, `enabled` and `off`, `false`, `0`, `disabled`.
Underscores in an option with two dashes stand for dashes; `--ngl` is read as `-ngl`.

Least of all count llama.cpp's `config.ini` (`/etc/llama.cpp`, then `~/.config/llama.cpp` or
`$XDG_CONFIG_HOME/llama.cpp`): the sections `[*]` and `[default]`, in which `ctx-size = 4096` is
`--ctx-size 4096`. Keys that are no options here are passed over.
"""
FIELDS = """Each is a field of requests too, and of `generation_settings`. A request's number
outside of what means something is moved to the nearest that does, or refused with the limits."""

HINTED = """They change no answer: taken with a line of warning, or without one where what they ask
for is so anyway. Their variables likewise; whatever `LLAMA_ARG_NO_X` is set to, it turns X off."""
NOT_TAKEN = """All of a command line's are told at once."""


def row(one: Stated) -> tuple[str, ...]:
    """The cells of a table: flags and value, variable, default, what it does."""
    option = one.option
    flags = " ".join(f"`{flag}`" for flag in spellings(option))
    value = f" `{placeholder(option)}`" if option.flags and placeholder(option) else ""
    shown = default_text(one.default, option)
    variable = f"`{option.env}`" if option.env else ""
    return flags + value, variable, f"`{shown}`" if shown else "", option.help


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for cells in (names, ["---"] * len(names), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def text() -> str:
    return "\n".join([HEAD, *sections()])


def sections() -> Iterator[str]:
    yield from own_sections()
    yield f"## llama-server's hints\n\n{HINTED}\n"
    yield from foreign(HINTS)
    yield f"## Refused\n\n{NOT_TAKEN}\n"
    yield from foreign(REFUSED)


def own_sections() -> Iterator[str]:
    options = list(stated(Settings))
    for group in GROUPS:
        yield f"## {group}\n"
        if group == SAMPLING:
            yield f"{FIELDS}\n"
            rows = [(f"`{name}`", *row(Stated(name, *parameter))) for name, parameter in sampling()]
            yield from table(("field", "option", "variable", "default", ""), rows)
            yield ""
        rest = [one for one in options if one.option.group == group and not is_sampling(one)]
        if rest:
            yield from table(("option", "variable", "default", ""), map(row, rest))
            yield ""


def foreign(rows: Sequence[Foreign]) -> Iterator[str]:
    cells = [
        (" ".join(f"`{name}`" for name in names(row)), f"{row.reason}{unless(row)}") for row in rows
    ]
    yield from table(("option", ""), cells)
    yield ""


def unless(row: Foreign) -> str:
    """Which of their values are taken without a word."""
    if row.takes and row.neutral:
        return f" (not said of {', '.join(f'`{value}`' for value in row.neutral)})"
    return ""


def sampling() -> Iterator[tuple[str, tuple[Any, Option]]]:
    """Each parameter with its default, those without a flag too."""
    for field in fields(SamplingParams):
        yield field.name, (field.default, field.metadata["option"])


def is_sampling(one: Stated) -> bool:
    return any(one.option is option for _, (_, option) in sampling())


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
