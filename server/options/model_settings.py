"""Options that change what a model computes: its metadata, RoPE, adapters. A part of Settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import click

from gguf_serve.server.options.option import NATURAL, NUMBER, Finite, option

FILE = "The model's file"
ROPE = "RoPE and YaRN"
ADAPTERS = "Adapters"
NOT_NEGATIVE = Finite(0)


def truth(value: str) -> bool:
    return {"true": True, "false": False}[value]


KINDS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": truth, "str": str}
NEXT_KEY = re.compile(r",(?=[^,=]+=(?:int|float|bool|str):)")


class KeyValues(click.ParamType["tuple[tuple[str, Any], ...]"]):
    """Metadata, commas between: llama.context_length=int:4096."""

    name = "metadata"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[tuple[str, Any], ...]:
        if isinstance(value, tuple):
            return value
        found = []
        for part in NEXT_KEY.split(value):
            key, _, typed = part.partition("=")
            kind, colon, text = typed.partition(":")
            try:
                found.append((key, KINDS[kind](text)))
            except (KeyError, ValueError):
                self.fail(f"{part!r} is not KEY=TYPE:VALUE with int, float, bool or str")
            if not key or not colon:
                self.fail(f"{part!r} names no key")
        return tuple(found)


class ScaledFiles(click.ParamType["tuple[tuple[str, float], ...]"]):
    """Files with their scales, commas between: a.gguf:0.5,b.gguf:1."""

    name = "scaled files"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[tuple[str, float], ...]:
        if isinstance(value, tuple):
            return value
        found = []
        for part in value.split(","):
            path, _, scale = part.rpartition(":")
            try:
                found.append((path, float(scale)))
            except ValueError:
                self.fail(f"{part!r} is not a file and a scale such as adapter.gguf:0.5")
            if not path:
                self.fail(f"{part!r} names no file")
        return tuple(found)


# fmt: off
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    override_kv: tuple[tuple[tuple[str, Any], ...], ...] = option(
        "--override-kv", group=FILE, type=KeyValues(), metavar="KEY=TYPE:VALUE,...", multiple=True,
        default=(),
        help="in place of the file's metadata; types: int, float, bool, str; repeatable",
    )
    check_tensors: bool = option(
        "--check-tensors", group=FILE, default=False,
        help="look for values that are not numbers before loading, and after each layer",
    )
    rope_scaling: Literal["none", "linear", "yarn"] | None = option(
        "--rope-scaling", group=ROPE, env="ROPE_SCALING_TYPE",
        type=click.Choice(("none", "linear", "yarn")), default=None,
        help="how RoPE is stretched to longer contexts; the model's otherwise",
    )
    rope_scale: float = option(
        "--rope-scale", group=ROPE, env="ROPE_SCALE", type=NOT_NEGATIVE, default=0.0,
        help="how many times longer contexts may be; 0: as the model says",
    )
    rope_freq_base: float = option(
        "--rope-freq-base", group=ROPE, env="ROPE_FREQ_BASE", type=NOT_NEGATIVE, default=0.0,
        help="base of the frequencies; 0: the model's",
    )
    rope_freq_scale: float = option(
        "--rope-freq-scale", group=ROPE, env="ROPE_FREQ_SCALE", type=NOT_NEGATIVE, default=0.0,
        help="what frequencies are multiplied with, 1 / --rope-scale; 0: as the model says",
    )
    yarn_orig_ctx: int = option(
        "--yarn-orig-ctx", group=ROPE, env="YARN_ORIG_CTX", type=NATURAL, default=0,
        help="context that the model was trained with; 0: as the model says",
    )
    yarn_ext_factor: float = option(
        "--yarn-ext-factor", group=ROPE, env="YARN_EXT_FACTOR", type=NUMBER, default=-1.0,
        help="share of extrapolation; 0: frequencies are interpolated only, -1: by the scaling",
    )
    yarn_attn_factor: float = option(
        "--yarn-attn-factor", group=ROPE, env="YARN_ATTN_FACTOR", type=NUMBER, default=-1.0,
        help="what Q and K are multiplied with; -1: as the model says",
    )
    yarn_beta_slow: float = option(
        "--yarn-beta-slow", group=ROPE, env="YARN_BETA_SLOW", type=NUMBER, default=-1.0,
        help="turns below which a frequency is interpolated; -1: as the model says",
    )
    yarn_beta_fast: float = option(
        "--yarn-beta-fast", group=ROPE, env="YARN_BETA_FAST", type=NUMBER, default=-1.0,
        help="turns above which a frequency is kept; -1: as the model says",
    )
    lora: tuple[str, ...] = option(
        "--lora", group=ADAPTERS, env="LORA", type=click.STRING, metavar="FILE,...",
        multiple=True, default=(), help="LoRA adapter; repeatable, or several with commas between",
    )
    lora_scaled: tuple[tuple[tuple[str, float], ...], ...] = option(
        "--lora-scaled", group=ADAPTERS, type=ScaledFiles(), metavar="FILE:SCALE,...",
        multiple=True, default=(), help="the same with a scale of its own",
    )
    lora_init_without_apply: bool = option(
        "--lora-init-without-apply", group=ADAPTERS, default=False,
        help="load adapters with the scale 0; requests and /lora-adapters set others",
    )
    control_vector: tuple[str, ...] = option(
        "--control-vector", group=ADAPTERS, type=click.STRING, metavar="FILE,...", multiple=True,
        default=(), help="control vector; repeatable, or several with commas between",
    )
    control_vector_scaled: tuple[tuple[tuple[str, float], ...], ...] = option(
        "--control-vector-scaled", group=ADAPTERS, type=ScaledFiles(), metavar="FILE:SCALE,...",
        multiple=True, default=(), help="the same with a strength of its own",
    )
    control_vector_layer_range: tuple[int, int] | None = option(
        "--control-vector-layer-range", group=ADAPTERS,
        type=click.Tuple([NATURAL, NATURAL]), metavar="START END",
        default=None, help="layers that control vectors are added to, both included; all",
    )
# fmt: on
