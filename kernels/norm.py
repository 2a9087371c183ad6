"""Normalization of rows and quantization of activations (norm.cl)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.matmul import Activations
from kernels.tape import TOKENS, Per, Tape
from kernels.tensor import Tensor

SIMT_GROUP = 64


@dataclass(frozen=True, slots=True)
class NormWeights:
    """What a norm layer has: the formula, its weight and, for some, a bias."""

    weight: Tensor | None
    eps: float
    bias: Tensor | None = None
    layer: bool = False  # layer norm instead of RMS norm

    @property
    def defines(self) -> list[str]:
        if self.weight is None:
            return ["NORM_NONE"]
        return ["NORM_LAYER" if self.layer else "NORM_RMS"] + ["BIAS"] * (self.bias is not None)


def norm(
    tape: Tape,
    x: Tensor,
    weights: NormWeights,
    out: Activations,
    *,
    count: int = TOKENS,
    post: tuple[Tensor, Tensor] | None = None,
    rows: Tensor | None = None,
) -> None:
    """out[t] = norm(x[t]) (or x[rows[t]]), as floats, quantized, or both: what ``out`` has.

    ``post`` = (y, weight): x[t] += rms_norm(y[t]) * weight before that.
    """
    group = 1 if tape.device.is_simd else SIMT_GROUP
    defines = [*weights.defines, f"WG={group}"]
    args: list[object] = [x.buffer, np.int32(out.n_cols), np.float32(weights.eps)]
    args += [t.buffer for t in (weights.weight, weights.bias) if t is not None]
    if post is not None:
        defines.append("POST")
        args += [post[0].buffer, post[1].buffer]
    if rows is not None:
        defines.append("GATHER")
        args.append(rows.buffer)
    if out.values is not None:
        args.append(out.values.buffer)
    elif out.codes is not None and out.scales is not None:
        defines.append("QUANTIZE")
        args += [out.codes.buffer, out.scales.buffer]
    tape.add("norm.cl", "norm", defines, args, (Per(count, 1, group),), (group,))
    if out.values is not None and out.quantized:
        quantize(tape, out, count=count)


def quantize(tape: Tape, x: Activations, *, count: int = TOKENS) -> None:
    """Fill the codes and scales of ``x`` from its values."""
    if x.values is None or not x.quantized:
        raise ValueError("quantize needs both values and codes")
    codes = Activations(x.n_cols, codes=x.codes, scales=x.scales)
    norm(tape, x.values, NormWeights(None, 0.0), codes, count=count)
