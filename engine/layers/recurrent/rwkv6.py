"""RWKV-6's time mix (https://arxiv.org/abs/2404.05892): linear attention with a decay for each key,
over tokens that are shifted by shares of their own; and what was made of Qwen2 with it."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.layers.recurrent.rwkv7 import load_head_norm
from gguf_serve.engine.layers.recurrent.token_shift import load_shares
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.recurrent.rwkv import RWKVHeads
from gguf_serve.kernels.rows.norm import NormWeights

READERS = "wkvrg"  # what reads shifted tokens, in the file's order: decay, K, V, r, gate


class RWKV6Weights(Struct, frozen=True):
    """``share``: of what ``narrow`` reads, which yields few values for each reader; ``wide`` makes
    of these what is added to its ``shares``. ``bonus`` None: keys are what their decay leaves room
    for, as in models that were made of Qwen2."""

    share: Tensor
    narrow: Linear
    wide: tuple[Linear, ...]
    shares: tuple[Tensor, ...]
    r: Linear
    decay: tuple[Linear, Linear]
    k: Linear
    v: Linear
    gate: Linear
    heads: RWKVHeads
    bonus: Tensor | None
    norm: NormWeights | None
    output: Linear

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return time_mix(g, x, self)


def load_rwkv6(source: TensorSource, h: Hyperparameters, layer: int) -> RWKV6Weights:
    """Layer ``layer``'s time mix; ModelError for tensors that are missing or do not fit."""
    b, bonus = f"blk.{layer}.time_mix_", source.vector(f"blk.{layer}.time_mix_first.weight")
    k = source.linear(f"{b}key", h.n_embd)
    n_heads, n_kv = h.n_embd // h.ssm_state, k.matrix.n_rows // h.ssm_state
    if not n_kv or n_heads % n_kv or (bonus is not None and n_kv != n_heads):
        raise ModelError(f"{b}key.weight has {n_kv} heads of {h.ssm_state} for {n_heads} of r")
    second = source.linear(f"{b}decay_w2")
    return RWKV6Weights(
        load_shares(source, f"{b}lerp_x", 1, h.n_embd)[0],
        source.linear(f"{b}w1", h.n_embd),
        tuple(each for part in source.experts(f"{b}w2") for each in source.stacked([part])),
        _shares(source, b, h.n_embd),
        source.linear(f"{b}receptance", h.n_embd),
        (source.linear(f"{b}decay_w1"), replace(second, bias=source.vector(f"{b}decay.weight"))),
        k,
        source.linear(f"{b}value", h.n_embd),
        source.linear(f"{b}gate", h.n_embd),
        RWKVHeads(n_heads, h.ssm_state, n_heads // n_kv),
        bonus,
        None if bonus is None else load_head_norm(source, f"{b}ln"),
        source.linear(f"{b}output"),
    )


def _shares(source: TensorSource, b: str, width: int) -> tuple[Tensor, ...]:
    """Older files have a tensor for each reader."""
    if source.has(f"{b}lerp_fused.weight"):
        return load_shares(source, f"{b}lerp_fused", len(READERS), width)
    return tuple(load_shares(source, f"{b}lerp_{name}", 1, width)[0] for name in READERS)


def time_mix(g: Graph, x: Rows, w: RWKV6Weights) -> Rows:
    """W (act(gate) * norm(y)), y the recurrence over r, decay, K and V."""
    before = g.before(x)
    narrow = g.activate(g.linear(g.lerp(x, before, by=w.share), w.narrow), "tanh")
    parts = narrow.split(*[narrow.width // len(READERS)] * len(READERS))
    xw, xk, xv, xr, xg = (
        g.lerp(x, before, by=share, rows=g.linear(part, wide))
        for part, share, wide in zip(parts, w.shares, w.wide, strict=True)
    )
    r, k, v = g.linear(xr, w.r), g.linear(xk, w.k), g.linear(xv, w.v)
    decay = g.linear(g.activate(g.linear(xw, w.decay[0]), "tanh"), w.decay[1])
    if w.bonus is None:
        decay, k = g.rwkv6_decay(w.heads, decay, k)
        y = g.rwkv(w.heads, r, decay, k, v, scale=w.heads.size**-0.5)
    else:
        (decay,) = g.rwkv6_decay(w.heads, decay, None)
        y = g.rwkv(w.heads, r, decay, k, v, bonus=w.bonus)
    if w.norm is not None:
        y = g.norm(y, w.norm, groups=w.heads.n)
    activation = "sigmoid" if w.bonus is None else "silu"
    return g.output(g.activate(g.linear(xg, w.gate), activation, times=y), w.output)
