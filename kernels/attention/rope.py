"""Rotary embedding, Q/K norms and the write of K and V into their pages (rope.cl)."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.kernels.attention.kv import PAGE, KVShape, LayerKV
from gguf_serve.kernels.opencl.signature import Arguments
from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor

SIMT_GROUP = 32  # work-items of a head; none idle, for which PoCL makes wrong code


class RopeStyle(Struct, frozen=True):
    """n_rot: rotated values of a head, from ``begin`` on; neox: pairs (i, i + n_rot/2), else
    (2i, 2i + 1)."""

    n_rot: int
    neox: bool
    begin: int = 0


class QKNorm(Struct, frozen=True):
    """The QK norm, per head: a weight of [head], of [heads, head] for heads that
    have their own, of [heads, 1] for heads with one factor, or none."""

    eps: float
    q: Tensor | None = None
    k: Tensor | None = None
    layer: bool = False  # layer norm instead of RMS norm
    after: bool = False  # after the rotation
    q_bias: Tensor | None = None  # as the weights
    k_bias: Tensor | None = None
    values: bool = False  # heads of V have one too, without weight

    def defines(self, head: int) -> list[str]:
        weight = self.q or self.k
        shape = (head,) if weight is None else weight.shape
        strides = (0, 1) if len(shape) == 1 else (shape[1], int(shape[1] > 1))
        flags = {"NORM_LAYER": self.layer, "NORM_AFTER": self.after, "NORM_V": self.values}
        names = [name for name, on in flags.items() if on]
        return [f"W_HEAD={strides[0]}", f"W_ITEM={strides[1]}", *names]

    @property
    def args(self) -> Arguments:
        return {
            "eps": self.eps, "q_weight": self.q, "k_weight": self.k, "q_bias": self.q_bias,
            "k_bias": self.k_bias,
        }  # fmt: skip


class Temperature(Struct, frozen=True):
    """Q of position p is multiplied with 1 + growth * log(1 + floor((p + shift) / step))."""

    positions: Tensor
    growth: float
    step: int
    shift: float


def rope_table(
    tape: Tape,
    positions: Tensor,
    frequencies: Tensor,
    table: Tensor,
    attention_factor: float = 1.0,
    components: Tensor | None = None,
) -> None:
    """table[t] = cos, then sin of positions[t] * frequencies, float32 [n, 2, n_rot / 2].

    With ``components``, int32 [n_rot / 2], positions are int32 [n, 4]: it says which of the four
    turns a pair.
    """
    n = frequencies.shape[0]
    if components is not None and (components.shape != (n,) or positions.shape[1:] != (4,)):
        raise ValueError(f"components {components.shape} for {n} pairs, {positions.shape}")
    args = {
        "positions": positions, "frequencies": frequencies, "attention_factor": attention_factor,
        "table": table, "components": components,
    }  # fmt: skip
    tape.add("attention/rope.cl", "rope_table", (), args, (n, Per(TOKENS)))


class QKVRows(Struct, frozen=True):
    """Where a token's Q, K and V are: in rows of float32, heads side by side, from an offset."""

    q: Tensor
    k: Tensor
    v: Tensor
    k_at: int = 0
    v_at: int = 0

    @property
    def args(self) -> Arguments:
        return {
            "q": self.q, "q_stride": self.q.shape[-1],
            "k": self.k, "k_stride": self.k.shape[-1], "k_at": self.k_at,
            "v": self.v, "v_stride": self.v.shape[-1], "v_at": self.v_at,
        }  # fmt: skip


def qkv_rows(qkv: Tensor, n_heads: int, shape: KVShape) -> QKVRows:
    """Q, K and V side by side: float32 [n, (n_heads + n_kv) * head + n_kv * head_v]."""
    k_at, v_at = n_heads * shape.head, (n_heads + shape.n_kv) * shape.head
    width = v_at + shape.n_kv * shape.head_v
    if qkv.shape[-1] != width:
        raise ValueError(f"rows of qkv have {qkv.shape[-1]} values, not {width}")
    return QKVRows(qkv, qkv, qkv, k_at, v_at)


def rope_kv(
    tape: Tape,
    rows: QKVRows,
    n_heads: int,
    layer: LayerKV,
    table: Tensor | None,
    slot_mapping: Tensor,
    *,
    style: RopeStyle,
    scale: float,
    norm: QKNorm | None = None,
    clamp: float = 0.0,
    temperature: Temperature | None = None,
    stored: bool = True,
) -> None:
    """Rotate (and normalize) Q in place, times ``scale``, and K; write K and V to
    slot_mapping[t], unless they are not to be ``stored``: then rows.k and rows.v are not read.

    All are first bounded by +-``clamp`` if that is not 0. Where K and V are the same
    (``KVShape.joint``), K as it is then is both, and rows.v is not read.
    """
    shape, n_kv = layer.shape, layer.shape.n_kv if stored else 0
    if norm is not None and norm.values and shape.head != shape.head_v:
        raise ValueError(f"a norm of heads of V of {shape.head_v}, with those of K of {shape.head}")
    defines = [
        f"HD={shape.head}", f"HDV={shape.head_v}", f"PAGE={PAGE}", f"N_ROT={style.n_rot}",
        f"ROT_AT={style.begin}", *(["NEOX"] if style.neox else []),
        *(["NO_ROPE"] if table is None else []), *["JOINT"] * shape.joint, *layer.defines,
    ]  # fmt: skip
    args: dict[str, object] = {
        **rows.args, "n_heads": n_heads, "n_kv": n_kv, "table": table,
        "slot_mapping": slot_mapping, "k_cache": layer.k.arg, "v_cache": layer.v.arg,
        "scale": scale, "clamp_to": clamp or None,
    }  # fmt: skip
    if norm is not None:
        defines += norm.defines(shape.head)
        args |= norm.args
    if temperature is not None:
        args |= {
            "positions": temperature.positions, "growth": temperature.growth,
            "step": temperature.step, "shift": temperature.shift,
        }  # fmt: skip
    n_written = n_kv if shape.joint else 2 * n_kv
    group = tape.device.group(min(SIMT_GROUP, shape.head, shape.head_v))
    defines.append(f"WG={group}")
    grid = ((n_heads + n_written) * group, Per(TOKENS))
    tape.add("attention/rope.cl", "rope_kv", defines, args, grid, (group, 1))


def pool_keys(
    tape: Tape,
    layer: LayerKV,
    table: Tensor | None,
    slot_mapping: Tensor,
    *,
    style: RopeStyle,
    norm: QKNorm | None,
    gates: Tensor | None,
) -> None:
    """The keys of blocks that end with a token of the step, of what their tokens have as values.

    A token has head values, whose mean is taken; with ``gates``, float32 [block, head], as many
    gates too: a value's weights are the softmax over the block of its gates and these. The key
    is normalized (``norm.k``) and rotated: table[t] is of the first token of the block of t.
    """
    shape = layer.shape
    if shape.n_kv != 1 or shape.head_v != shape.head * (1 + (gates is not None)):
        raise ValueError(f"keys of blocks of {shape}")
    defines = [
        f"HD={shape.head}", f"HDV={shape.head_v}", f"PAGE={PAGE}", f"N_ROT={style.n_rot}",
        f"ROT_AT={style.begin}", *(["NEOX"] if style.neox else []),
        *(["NO_ROPE"] if table is None else []), *layer.defines,
    ]  # fmt: skip
    args: dict[str, object] = {
        "table": table, "slot_mapping": slot_mapping, "k_cache": layer.k.arg,
        "v_cache": layer.v.arg, "ape": gates,
    }  # fmt: skip
    if norm is not None:
        of_keys = replace(norm, q=None)
        defines += of_keys.defines(shape.head)
        args |= of_keys.args
    tape.add("attention/rope.cl", "pool_keys", defines, args, (Per(TOKENS),))
