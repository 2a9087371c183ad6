"""Normalization of rows and quantization of activations (norm.cl)."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.quantization.packing import BLOCK, SPAN

SIMT_GROUP = 64


class NormWeights(Struct, frozen=True):
    """What a norm layer has: the formula, its weight and, for some, a bias."""

    weight: Tensor | None
    eps: float
    bias: Tensor | None = None
    layer: bool = False  # layer norm instead of RMS norm
    weightless: bool = False  # a norm without weight; else one without weight does nothing

    @property
    def is_copy(self) -> bool:
        """Whether nothing is normalized."""
        return self.weight is None and not self.weightless

    @property
    def defines(self) -> list[str]:
        if self.is_copy:
            return ["NORM_NONE"]
        tensors = {"NORM_WEIGHT": self.weight, "NORM_BIAS": self.bias}
        names = [name for name, tensor in tensors.items() if tensor is not None]
        return ["NORM_LAYER" if self.layer else "NORM_RMS", *names]


COPY = NormWeights(None, 0.0)  # a copy of rows, or only their quantization


class PostNorm(Struct, frozen=True):
    """x += rms_norm(y) * weight, before anything else; y: float32 [n, n_cols]."""

    y: Tensor
    weight: Tensor
    eps: float


def norm(
    tape: Tape,
    x: Tensor,
    weights: NormWeights,
    out: Activations,
    *,
    count: int = TOKENS,
    times: int = 1,
    post: PostNorm | None = None,
    rows: Tensor | None = None,
    offset: int = 0,
    out_offset: int = 0,
    groups: int = 1,
) -> None:
    """out[t] = norm(x[t]) (or x[rows[t]]), as floats, quantized, or both: what ``out`` has.

    Of a row of x the out.n_cols values from ``offset`` on are normalized, in ``groups`` of
    equal size each by itself; floats go to ``out_offset`` of a row of out.values, which may be
    x. There are ``times`` rows for each of counts[count].
    """
    whole = rows is None and (times, groups, offset, out_offset) == (1, 1, 0, 0)
    if whole and count == TOKENS and _ends_product(tape, x, weights, out, post):
        return
    group = tape.device.group(SIMT_GROUP)
    defines = [*weights.defines, f"WG={group}"]
    n_cols = out.n_cols // groups
    if out.spans and n_cols % (BLOCK * SPAN):
        raise ValueError(f"groups of {n_cols} columns in spans of {BLOCK * SPAN}")
    args: dict[str, object] = {
        "x": x, "n_cols": n_cols, "stride": x.shape[-1], "offset": offset, "eps": weights.eps,
        "weight": weights.weight, "bias": weights.bias, "rows": rows,
    }  # fmt: skip
    if post is not None:
        args |= {"y": post.y, "post_weight": post.weight, "post_eps": post.eps}
    in_place = out.values is not None and out.values.buffer is x.buffer
    if out.values is not None:
        args |= {"out": out.values, "out_stride": out.values.shape[-1], "out_offset": out_offset}
    if out.quantized and not in_place:
        args |= {"out_q": out.codes, "out_d": out.scales}
        defines += out.code_defines
    grid = (Per(count, 1, group * times), groups)
    tape.add("rows/norm.cl", "norm", defines, args, grid, (group, 1))
    if out.quantized and in_place:
        quantize(tape, out, count=count, times=times)


def _ends_product(
    tape: Tape, x: Tensor, weights: NormWeights, out: Activations, post: PostNorm | None
) -> bool:
    """Have the product that has just written the rows normalize them, if it can."""
    written, made = tape.row_written, x if post is None else post.y
    if written is None or written.buffer is not made.buffer or written.shape != made.shape:
        return False
    if weights.defines != ["NORM_RMS", "NORM_WEIGHT"] or weights.weight is None:
        return False
    if out.n_cols != x.shape[-1]:
        return False
    args: dict[str, object] = {  # they bring NORM_NEXT of matmul_simd.cl
        "arrived": tape.arrivals, "eps": weights.eps, "weight": weights.weight,
        "normed": out.values,
    }  # fmt: skip
    if post is not None:
        args |= {"stream": x, "post_weight": post.weight, "post_eps": post.eps}
    if out.quantized:
        args |= {"normed_q": out.codes, "normed_d": out.scales}
    tape.extend([*weights.defines, *out.code_defines], args)
    return True


def quantize(tape: Tape, x: Activations, *, count: int = TOKENS, times: int = 1) -> None:
    """Fill the codes and scales of ``x`` from its values."""
    if x.values is None or not x.quantized:
        raise ValueError("quantize needs both values and codes")
    codes = replace(x, values=None)
    norm(tape, x.values, COPY, codes, count=count, times=times)
