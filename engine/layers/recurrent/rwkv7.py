"""RWKV-7's time mix (https://arxiv.org/abs/2503.14456): linear attention with a generalized delta
rule, whose decay, rate, value and gate come of matrices of low rank over shifted tokens."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.layers.recurrent.token_shift import load_shares, shifted
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.recurrent.rwkv import RWKV7Vectors, RWKVHeads
from gguf_serve.kernels.rows.norm import NormWeights

HEAD_EPS = 64e-5  # of the norm of each head's output, in all models
FIRST_VALUE = "first layer's value"  # among what is kept for later layers
LowRank = tuple[Linear, Linear]


class RWKV7Weights(Struct, frozen=True):
    """``shares``: of what yields r, decay, K, V, rate and, if there is one, the gate.
    ``value_share``: what of V is the first layer's; None: this is the first layer."""

    shares: tuple[Tensor, ...]
    r: Linear
    decay: LowRank
    k: Linear
    v: Linear
    rate: LowRank
    value_share: LowRank | None
    gate: LowRank | None
    heads: RWKVHeads
    vectors: RWKV7Vectors
    norm: NormWeights | None
    output: Linear

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return time_mix(g, x, self)


def load_rwkv7(source: TensorSource, h: Hyperparameters, layer: int) -> RWKV7Weights:
    """Layer ``layer``'s time mix; ModelError for tensors that are missing."""
    b = f"blk.{layer}.time_mix_"
    gate = _low_rank(source, f"{b}g") if source.has(f"{b}g1.weight") else None
    return RWKV7Weights(
        load_shares(source, f"{b}lerp_fused", 5 if gate is None else 6, h.n_embd),
        source.linear(f"{b}receptance", h.n_embd),
        _low_rank(source, f"{b}w"),
        source.linear(f"{b}key", h.n_embd),
        source.linear(f"{b}value", h.n_embd),
        _low_rank(source, f"{b}a"),
        _low_rank(source, f"{b}v") if layer else None,
        gate,
        RWKVHeads(h.n_embd // h.ssm_state, h.ssm_state),
        RWKV7Vectors(*(_vector(source, f"{b}{name}") for name in ("k_k", "k_a", "r_k"))),
        load_head_norm(source, f"{b}ln"),
        source.linear(f"{b}output"),
    )


def _low_rank(source: TensorSource, name: str) -> LowRank:
    """Two matrices with few values between them, and a bias after the second."""
    second = source.linear(f"{name}2")
    return source.linear(f"{name}1"), replace(second, bias=source.vector(f"{name}0.weight"))


def _vector(source: TensorSource, name: str) -> Tensor:
    found = source.vector(f"{name}.weight")
    if found is None:
        raise ModelError(f"{name}.weight is missing")
    return found


def load_head_norm(source: TensorSource, name: str) -> NormWeights | None:
    """The norm of each head's output, with weights of all heads, where the file has one."""
    weight = source.vector(f"{name}.weight")
    if weight is None:
        return None
    return NormWeights(weight, HEAD_EPS, source.vector(f"{name}.bias"), layer=True)


def time_mix(g: Graph, x: Rows, w: RWKV7Weights) -> Rows:
    """W (gate * (norm(y) + own * v)), y the delta rule over r, decay, K, V and rate, and own a
    token's factor of its own V for each head."""
    xr, xw, xk, xv, xa, *xg = shifted(g, x, w.shares)
    r, k = g.linear(xr, w.r), g.linear(xk, w.k)
    decay = g.linear(g.activate(g.linear(xw, w.decay[0]), "tanh"), w.decay[1])
    v, rate = _value(g, xv, w), g.through(xa, w.rate)
    decay, k, removed, added, own = g.rwkv7_keys(w.heads, w.vectors, r, decay, k, rate)
    y = g.rwkv(w.heads, r, decay, k, v, removal=(removed, added))
    if w.norm is not None:
        y = g.norm(y, w.norm, groups=w.heads.n)
    y = g.add(y, g.activate(own, "none", times=v))
    if w.gate is not None:
        narrow = g.activate(g.linear(xg[0], w.gate[0]), "sigmoid")
        y = g.activate(g.linear(narrow, w.gate[1]), "none", times=y)
    return g.output(y, w.output)


def _value(g: Graph, x: Rows, w: RWKV7Weights) -> Rows:
    """V, between the layer's own and the first layer's."""
    v = g.linear(x, w.v)
    if w.value_share is None:
        g.kept[FIRST_VALUE] = v
        return v
    share = g.activate(g.through(x, w.value_share), "sigmoid")
    return g.lerp(v, g.kept[FIRST_VALUE], rows=share)
