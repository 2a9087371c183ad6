"""Rotary embedding, Q/K norms and the write of K and V into their pages (rope.cl)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.kv import PAGE, LayerKV
from kernels.tape import TOKENS, Per, Tape
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True)
class RopeStyle:
    """n_rot: rotated values of a head; neox: pairs (i, i + n_rot/2), else (2i, 2i + 1)."""

    n_rot: int
    neox: bool


def rope_table(
    tape: Tape, positions: Tensor, frequencies: Tensor, table: Tensor, attention_factor: float = 1.0
) -> None:
    """table[t] = cos, then sin of positions[t] * frequencies, float32 [n, 2, n_rot / 2]."""
    n = frequencies.shape[0]
    args = [
        positions.buffer, frequencies.buffer, np.float32(attention_factor), table.buffer,
    ]  # fmt: skip
    tape.add("rope.cl", "rope_table", [f"PAGE={PAGE}", "HDV=16"], args, (n, Per(TOKENS)))


def rope_kv(
    tape: Tape,
    qkv: Tensor,
    n_heads: int,
    layer: LayerKV,
    table: Tensor | None,
    slots: Tensor,
    *,
    style: RopeStyle,
    scale: float,
    norms: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> None:
    """Rotate (and normalize) Q in place, times ``scale``, and K; write K and V to slots[t].

    qkv: float32 [n, (n_heads + n_kv) * head + n_kv * head_v].
    """
    shape = layer.shape
    width = (n_heads + shape.n_kv) * shape.head + shape.n_kv * shape.head_v
    if qkv.shape[-1] != width:
        raise ValueError(f"rows of qkv have {qkv.shape[-1]} values, not {width}")
    defines = [
        f"HD={shape.head}", f"HDV={shape.head_v}", f"PAGE={PAGE}", f"N_ROT={style.n_rot}",
        *(["NEOX"] if style.neox else []), *(["NO_ROPE"] if table is None else []),
        *layer.defines,
    ]  # fmt: skip
    rotation = table or slots  # an argument that NO_ROPE does not read
    args: list[object] = [
        qkv.buffer, np.int32(n_heads), np.int32(shape.n_kv), rotation.buffer, slots.buffer,
        layer.k.buffer, layer.v.buffer, np.float32(scale),
    ]  # fmt: skip
    if norms is not None:
        defines.append("QK_NORM")
        args += [norms[0].buffer, norms[1].buffer, np.float32(eps)]
    tape.add("rope.cl", "rope_kv", defines, args, (n_heads + 2 * shape.n_kv, Per(TOKENS)))
