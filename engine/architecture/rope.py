"""RoPE frequencies: bases, and the ways in which files stretch them to longer contexts.

Linear scaling, YaRN (https://arxiv.org/abs/2309.00071), and factors per frequency (Llama 3's
``rope_freqs``, LongRoPE's two sets), as llama.cpp applies them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.options import RopeOptions


class RopeScaling(Struct, frozen=True):
    """How the frequencies are stretched; ``factor`` 1 and no YaRN: not at all."""

    factor: float = 1.0
    extrapolation: float = 0.0  # YaRN's: how much of the fast pairs' plain frequencies; 0: no YaRN
    original_context: int = 0
    longest_short: int = 0  # tokens of context up to which the short factors count, not the long
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_multiplier: float = 0.0  # YaRN's mscale_all_dim
    one_multiplier: bool = False  # it is YaRN's mscale too, which otherwise is 1
    scores: bool = False  # attention scores are multiplied too, as DeepSeek-V2 does it
    attention_factor: float = 1.0  # multiplies cos and sin

    @property
    def yarn(self) -> bool:
        return self.extrapolation != 0

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied with."""
        if not self.yarn:
            return self.attention_factor
        mscale = self.log_multiplier if self.one_multiplier and self.log_multiplier else 1.0
        ratio = _magnitude(self.factor, mscale) / _magnitude(self.factor, self.log_multiplier)
        return self.attention_factor * ratio

    @property
    def score_scale(self) -> float:
        """What attention scores are multiplied with: YaRN's factors, without YaRN too, as
        llama.cpp has it."""
        if not self.scores:
            return 1.0
        growth = 0.1 * math.log(self.factor)
        own = self.magnitude if self.yarn else self.attention_factor * (1 + growth)
        return (own * (1 + self.log_multiplier * growth)) ** 2

    def frequencies(
        self, base: float, n_rot: int, factors: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.float32]:
        """The angle per position of each pair, float32 [n_rot / 2]; ``factors`` divide them."""
        exponents = np.arange(0, n_rot, 2, dtype=np.float64) / n_rot
        plain = base**-exponents
        if factors is not None:
            plain = plain / factors[: len(plain)].astype(np.float64)
        stretched = plain / self.factor
        if not self.yarn:
            return stretched.astype(np.float32)
        share = self._unstretched_share(base, n_rot) * self.extrapolation
        return (stretched * (1 - share) + plain * share).astype(np.float32)

    def is_sound(self, base: float, n_rot: int) -> bool:
        """Whether all angles, and what they are multiplied with, are numbers."""
        if not (0 < base < math.inf and 0 < self.factor < math.inf):
            return False
        try:
            with np.errstate(all="ignore"):
                found = [*self.frequencies(base, n_rot, None), self.magnitude, self.score_scale]
                return bool(np.isfinite(np.array(found, np.float32)).all())
        except (ArithmeticError, ValueError):  # logarithms of what has none
            return False

    def _unstretched_share(self, base: float, n_rot: int) -> npt.NDArray[np.float64]:
        """1 for pairs that turn often within the original context, 0 for slow ones."""

        def pair(turns: float) -> float:
            ratio = self.original_context / (turns * 2 * math.pi)
            return n_rot * math.log(ratio) / (2 * math.log(base))

        low = max(0.0, math.floor(pair(self.beta_fast)))
        high = min(n_rot - 1.0, math.ceil(pair(self.beta_slow)))
        ramp = (np.arange(n_rot // 2) - low) / max(0.001, high - low)
        share: npt.NDArray[np.float64] = 1 - np.clip(ramp, 0, 1)
        return share


def rescaled(scaling: RopeScaling, options: RopeOptions) -> RopeScaling:
    """The scaling with what a person has set, by llama.cpp's rules."""

    def chosen(option: float, own: float) -> float:
        return own if option < 0 else option

    kind = options.kind
    extrapolation = scaling.extrapolation if kind is None else float(kind == "yarn")
    return replace(
        scaling,
        factor=1.0 if kind == "none" else options.factor or scaling.factor,
        extrapolation=chosen(options.extrapolation, extrapolation),
        original_context=options.original_context or scaling.original_context,
        beta_slow=chosen(options.beta_slow, scaling.beta_slow),
        beta_fast=chosen(options.beta_fast, scaling.beta_fast),
        attention_factor=scaling.attention_factor * chosen(options.attention_factor, 1.0),
    )


def pair_components(
    sections: Sequence[int], n_pairs: int, *, interleaved: bool
) -> npt.NDArray[np.int32]:
    """M-RoPE: which component of a position (time, row, column, other) turns each pair.

    ``sections``: how many pairs of each kind, repeated to the end. Interleaved, as in Qwen3-VL:
    pairs take turns in the first three, as far as a section reaches.
    """
    sector = np.arange(n_pairs) % max(sum(sections), 1)
    if not interleaved:
        found = np.searchsorted(np.cumsum(sections), sector, side="right")
        return found.astype(np.int32)
    turn = sector % 3
    reach = 3 * np.array(sections[:3])[turn]
    return np.where(sector < reach, turn, 3).astype(np.int32)


def _magnitude(factor: float, multiplier: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def read_rope_scaling(
    gguf: GGUFFile, multiplier: float, *, one_multiplier: bool, scores: bool
) -> RopeScaling:
    """The file's scaling; ModelError for a kind that is not known. ``multiplier``: of the file's
    number for YaRN's logarithm; the others are RopeScaling's."""

    def number(name: str, default: float) -> float:
        return gguf.get_float(gguf.arch_key(name), default)

    kind = gguf.get_str(gguf.arch_key("rope.scaling.type"), "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise ModelError(
            f"{gguf.path}: unknown RoPE scaling {kind!r}, expected none, linear, yarn or longrope"
        )
    factor = number("rope.scaling.factor", 0.0) or number("rope.scale_linear", 0.0) or 1.0
    n_ctx = gguf.get_int(gguf.arch_key("context_length"))
    original = gguf.get_int(gguf.arch_key("rope.scaling.original_context_length"), n_ctx)
    extrapolation = number("rope.scaling.yarn_ext_factor", -1.0)
    return RopeScaling(
        factor=1.0 if kind == "none" else factor,
        extrapolation=float(kind == "yarn") if extrapolation < 0 else extrapolation,
        original_context=original,
        longest_short=original,
        beta_fast=number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=number("rope.scaling.yarn_beta_slow", 1.0),
        log_multiplier=number("rope.scaling.yarn_log_multiplier", 0.0) * multiplier,
        one_multiplier=one_multiplier,
        scores=scores,
        attention_factor=number("rope.scaling.attn_factor", 1.0),
    )
