"""RoPE frequencies: bases, and the ways in which files stretch them to longer contexts.

Linear scaling, YaRN (https://arxiv.org/abs/2309.00071), and factors per frequency (Llama 3's
``rope_freqs``, LongRoPE's two sets), as llama.cpp applies them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engine.errors import ModelError
from engine.gguf import GGUFFile
from engine.options import RopeOptions


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the frequencies are stretched; ``factor`` 1 and no YaRN: not at all."""

    factor: float = 1.0
    extrapolation: float = 0.0  # YaRN's: how much of the fast pairs' plain frequencies; 0: no YaRN
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_multiplier: float = 0.0  # YaRN's mscale_all_dim
    latent: bool = False  # latent attention: the scores are multiplied, not cos and sin
    attention_factor: float = 1.0  # multiplies cos and sin
    chosen_factor: float | None = None  # does too, and stands for what the file says of YaRN's

    @property
    def yarn(self) -> bool:
        return self.extrapolation != 0

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied with."""
        if self.chosen_factor is not None:
            yarn = _magnitude(self.factor, 1.0) if self.yarn else 1.0
            return self.attention_factor * self.chosen_factor * yarn
        if not self.yarn or (self.latent and self.log_multiplier):
            return self.attention_factor
        scale = _magnitude(self.factor, 1.0)
        if self.log_multiplier:
            scale /= _magnitude(self.factor, self.log_multiplier)
        return self.attention_factor * scale

    @property
    def mla_scale(self) -> float:
        """What DeepSeek's attention multiplies the scores with, for YaRN's longer contexts."""
        return _magnitude(self.factor, self.log_multiplier) ** 2 if self.yarn else 1.0

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
    kind = options.kind
    extrapolation = scaling.extrapolation if kind is None else float(kind == "yarn")

    def chosen(option: float, own: float) -> float:
        return own if option < 0 else option

    return replace(
        scaling,
        factor=1.0 if kind == "none" else options.factor or scaling.factor,
        extrapolation=chosen(options.extrapolation, extrapolation),
        original_context=options.original_context or scaling.original_context,
        beta_slow=chosen(options.beta_slow, scaling.beta_slow),
        beta_fast=chosen(options.beta_fast, scaling.beta_fast),
        chosen_factor=None if options.attention_factor < 0 else options.attention_factor,
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


def read_rope_scaling(gguf: GGUFFile) -> RopeScaling:
    """The file's scaling; ModelError for a kind that is not known."""

    def number(name: str, default: float) -> float:
        return gguf.get_float(gguf.arch_key(name), default)

    kind = gguf.get_str(gguf.arch_key("rope.scaling.type"), "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise ModelError(f"{gguf.path}: unknown RoPE scaling {kind!r}")
    factor = number("rope.scaling.factor", 0.0) or number("rope.scale_linear", 0.0) or 1.0
    n_ctx = gguf.get_int(gguf.arch_key("context_length"))
    latent = gguf.arch_key("attention.kv_lora_rank") in gguf.metadata
    # DeepSeek's converter writes a tenth of it.
    multiplier = number("rope.scaling.yarn_log_multiplier", 0.0) * (10 if latent else 1)
    return RopeScaling(
        factor=1.0 if kind == "none" else factor,
        extrapolation=float(kind == "yarn"),
        original_context=gguf.get_int(gguf.arch_key("rope.scaling.original_context_length"), n_ctx),
        beta_fast=number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=number("rope.scaling.yarn_beta_slow", 1.0),
        log_multiplier=multiplier,
        latent=latent,
        attention_factor=number("rope.scaling.attn_factor", 1.0),
    )
