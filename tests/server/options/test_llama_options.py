"""Every option and variable of llama-server's is ours, taken, or refused with a reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from gguf_serve.server.cli import FLAGS as OURS
from gguf_serve.server.cli import OPTIONS, OWN
from gguf_serve.server.options.arguments import variables_of
from gguf_serve.server.options.llama_options import FLAGS, ROWS, VARIABLES
from gguf_serve.server.options.stated import default_text, spellings
from gguf_serve.server.sources.shortcuts import SHORTCUTS

ROOT = Path(__file__).resolve().parents[3]


class Theirs(NamedTuple):
    flags: list[str]
    value: str
    variable: str
    default: str


def theirs() -> list[Theirs]:
    lines = (ROOT / "tests" / "data" / "llama_options.txt").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split(" | ")] for line in lines if line[0] != "#"]
    return [Theirs(flags.split(), *cells) for flags, *cells in rows]


ALL = theirs()
IDS = [one.flags[-1] for one in ALL]


@pytest.mark.parametrize("one", ALL, ids=IDS)
def test_flags(one: Theirs) -> None:
    """With as many values as there."""
    for flag in one.flags:
        if flag in OURS:
            option = OURS[flag].stated.option
            n = 0 if option.type is None else 1 + option.pair
        elif flag in FLAGS:
            n = int(FLAGS[flag][1] is None)
        else:
            assert flag in OWN or flag in SHORTCUTS
            n = 0
        assert n == len(one.value.split(" ")) * bool(one.value) or "<tensor" in one.value, flag


def test_variables() -> None:
    ours = {name for option in OPTIONS for name, _ in variables_of(option.option)}
    assert {one.variable for one in ALL if one.variable} <= {*ours, *VARIABLES}


def test_a_flag_has_one_meaning() -> None:
    assert not set(FLAGS) & set(OURS)
    names = [name for row in ROWS for name in (row.takes + " " + row.on + " " + row.off).split()]
    assert len(names) == len(set(names)) > 200


def test_reasons_are_reasons() -> None:
    for row in ROWS:
        assert re.fullmatch(r"[a-z-].{10,}[^.\s]", row.reason), row.reason


def number(text: str) -> str:
    """A default without what is said about it, numbers alike however they are written."""
    word = re.split(r"[,; (]", text)[0] if re.match(r"-?\d", text) else text
    return f"{float(word):g}" if re.fullmatch(r"-?\d+(\.\d+)?", word) else word


WORDS = {
    "enabled": "on",
    "disabled": "off",
    "true": "on",
    "false": "off",
    "none": "",
    "unused": "",
    "default": "",
}
SAID = re.compile(
    r"same as|loaded from|read from|template taken|unset|value from|edskypmxt|prefill|enabled if"
)


def differing() -> set[str]:
    """Options of both with another default."""
    found = set()
    for one in ALL:
        ours = OURS.get(one.flags[-1])
        if ours is None or not one.default or SAID.match(one.default):
            continue
        option, default = ours.stated.option, ours.stated.default
        shown = default_text(default, option)
        if option.type is None and not shown:
            shown = "on" if default else "off"
        if option.multiple:
            shown = ",".join(default)
            their = "" if one.default == "no tools" else one.default.replace(" ", "")
        else:
            their = WORDS.get(number(one.default), number(one.default))
        nothing = not shown and their == "off"
        if not nothing and number(shown) != number(their):
            found.add(spellings(option)[-1])
    return found


def test_defaults_that_differ_are_in_the_docs() -> None:
    docs = (ROOT / "docs" / "api.md").read_text("utf-8").partition("## Differences")[2]
    listed = re.findall(r"`([^`]*)`", docs.partition("### Of defaults")[2])
    assert differing() == {flag for flag in listed if flag.startswith("--")}
