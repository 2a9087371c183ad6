"""Normalization of groups of channels over all tokens of a sequence (group_norm.cl)."""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.kernels.opencl.tape import SEQUENCES, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.norm import SIMT_GROUP


class GroupNormWeights(Struct, frozen=True):
    """weight, bias: float32 [channels]."""

    weight: Tensor
    bias: Tensor
    n_groups: int
    eps: float


def group_norm(
    tape: Tape,
    x: Tensor,
    w: GroupNormWeights,
    sequences: Tensor,
    out: Tensor,
    *,
    silu: bool = False,
) -> None:
    """x, out: float32 [n, channels], the groups equal parts of the channels; sequences: int32
    [s, 4] (recurrent/conv.cl). ``silu``: SiLU of what is normalized."""
    n_cols = x.shape[-1]
    if n_cols % w.n_groups or out.shape[-1] != n_cols:
        raise ValueError(
            f"{n_cols} channels in {w.n_groups} groups, to rows of {out.shape[-1]} values"
        )
    group = tape.device.group(SIMT_GROUP)
    args = {
        "x": x, "n_cols": n_cols, "size": n_cols // w.n_groups, "eps": w.eps, "weight": w.weight,
        "bias": w.bias, "sequences": sequences, "out": out,
    }  # fmt: skip
    defines = [f"WG={group}", *(["SILU_OUT"] if silu else [])]
    grid = (w.n_groups * group, Per(SEQUENCES))
    tape.add("rows/group_norm.cl", "group_norm", defines, args, grid, (group, 1))
