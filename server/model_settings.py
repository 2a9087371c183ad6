"""Options that change what a model computes: its RoPE. A part of Settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import click

from server.option import option

ROPE = "RoPE and YaRN"
NOT_NEGATIVE = click.FloatRange(0)


# fmt: off
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
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
        "--yarn-orig-ctx", group=ROPE, env="YARN_ORIG_CTX", type=click.IntRange(0), default=0,
        help="context that the model was trained with; 0: as the model says",
    )
    yarn_ext_factor: float = option(
        "--yarn-ext-factor", group=ROPE, env="YARN_EXT_FACTOR", type=click.FLOAT, default=-1.0,
        help="share of extrapolation; 0: frequencies are interpolated only, -1: by the scaling",
    )
    yarn_attn_factor: float = option(
        "--yarn-attn-factor", group=ROPE, env="YARN_ATTN_FACTOR", type=click.FLOAT, default=-1.0,
        help="what Q and K are multiplied with; -1: as the model says",
    )
    yarn_beta_slow: float = option(
        "--yarn-beta-slow", group=ROPE, env="YARN_BETA_SLOW", type=click.FLOAT, default=-1.0,
        help="turns below which a frequency is interpolated; -1: as the model says",
    )
    yarn_beta_fast: float = option(
        "--yarn-beta-fast", group=ROPE, env="YARN_BETA_FAST", type=click.FLOAT, default=-1.0,
        help="turns above which a frequency is kept; -1: as the model says",
    )
# fmt: on
