"""Options are stated once: what the command line, requests and docs have is derived from there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from gguf_serve.engine.option import SWITCH, Choice, Parsed, Real, Whole, option
from gguf_serve.engine.option_values import commas
from gguf_serve.engine.sampling_params import PARAMETERS, SamplingParams
from gguf_serve.server.options.click_options import click_option
from gguf_serve.server.options.settings import GROUPS, Settings
from gguf_serve.server.options.stated import default_text, made, placeholder, spellings, stated
from gguf_serve.server.requests.fields import CompletionFields, SamplingFields

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = list(stated(Settings))


@dataclass(frozen=True, slots=True)
class Part:
    size: int = option("-s", "--size", help="h", group="g", env="SIZE", type=Whole(1), default=2)
    silent: int = 5


@dataclass(frozen=True, slots=True)
class Settled:
    names: tuple[str, ...] = option(
        "--names", help="h", group="g", type=Parsed("N,..", commas), multiple=True, default=("a",)
    )
    on: bool = option("--on/--off", help="h", group="g", default=True)
    fast: str = option("--fast", help="h", group="g", type=Choice(("on", "no")), default="no")
    part: Part = field(default_factory=Part)


def given(*args: str) -> Settled:
    """What the dataclass becomes with a command line."""
    taken: dict[str, Any] = {}
    params = [click_option(one.name, one.option) for one in stated(Settled)]
    command = click.Command(
        "x", params=list(params), callback=lambda **values: taken.update(values)
    )
    result = CliRunner().invoke(command, args)
    assert result.exit_code == 0, result.output
    return made(Settled, taken)


def test_a_part_is_filled_with_its_own_options() -> None:
    assert given() == Settled()
    assert given("--size", "7").part == Part(7)
    assert given("--names", "a, b", "--names", "c").names == ("a", "b", "c")
    assert (given("--off").on, given("--on").on) == (False, True)


@pytest.mark.parametrize("word", ["on", "1", "true", "TRUE", "enabled"])
def test_words_for_on(word: str) -> None:
    assert given("--fast", word).fast == "on"
    assert SWITCH.parse(word) is True


def test_flags_and_variables_are_nobody_elses() -> None:
    flags = [flag for one in OPTIONS for flag in spellings(one.option)]
    variables = [one.option.env for one in OPTIONS if one.option.env]
    assert len(flags) == len(set(flags)) > 150
    assert len(variables) == len(set(variables)) > 50
    assert {one.option.group for one in OPTIONS} == set(GROUPS)


def test_defaults_are_within_limits() -> None:
    """And so is every sampling parameter's, whether it has a flag or not."""
    SamplingParams().check()
    for one in OPTIONS:
        kind = one.option.type
        if isinstance(kind, Whole | Real) and one.default is not None:
            assert kind.low <= one.default <= kind.high, one.name
        if isinstance(kind, Choice) and one.default is not None:
            assert one.default in kind.words, one.name
        assert placeholder(one.option) or one.option.type is None


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_sampling_parameter_is_everywhere(name: str) -> None:
    """On the command line and in requests; the docs are written from the same."""
    parameter = PARAMETERS[name]
    assert name in CompletionFields.__struct_fields__
    flags = [one.name for one in OPTIONS if one.option is parameter]
    assert flags == ([f"defaults__sampling__{name}"] if parameter.flags else [])


def test_numbers_of_requests_have_their_types() -> None:
    read = msgspec.convert({"top_k": 3, "min_p": 1, "ignore_eos": True}, SamplingFields)
    assert (read.top_k, read.min_p, read.ignore_eos) == (3, 1.0, True)  # type: ignore[attr-defined]
    with pytest.raises(msgspec.ValidationError, match="got `str`"):
        msgspec.convert({"top_k": "3"}, SamplingFields)
    described = msgspec.json.schema(SamplingFields)["$defs"]["SamplingFields"]["properties"]
    assert described["top_k"]["description"] == PARAMETERS["top_k"].help


def test_defaults_as_they_would_be_given() -> None:
    shown = {one.name: default_text(one.default, one.option) for one in OPTIONS}
    assert shown["engine__fit"] == "on"
    assert shown["model"] == shown["verbose"] == ""
    assert (shown["slots"], shown["metrics"]) == ("on", "off")
    assert shown["defaults__sampling__dry_sequence_breakers"] == r'\n : " *'
    assert shown["defaults__sampling__samplers"].startswith("penalties;dry;")


def test_no_name_of_ours_looks_like_llama_servers() -> None:
    """Its variables begin with LLAMA_ARG_: one that it has not would be taken for its own."""
    ours = [one.option.env for one in OPTIONS if one.option.env]
    known = re.findall(
        r"LLAMA_\w+|MTMD_\w+|HF_\w+", (ROOT / "tests/data/llama_options.txt").read_text()
    )
    assert {name for name in ours if not name.startswith("GGUF_SERVE_")} <= set(known)
