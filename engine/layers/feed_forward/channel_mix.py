"""RWKV's channel mix, its FFN: a squared ReLU over shifted tokens, in RWKV-6 with a gate."""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.layers.recurrent.token_shift import load_shares, shifted
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.opencl.tensor import Tensor


class ChannelMixWeights(Struct, frozen=True):
    """``shares``: of what ``key`` reads, and ``gate``, if there is one."""

    shares: tuple[Tensor, ...]
    key: Linear
    value: Linear
    gate: Linear | None

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return channel_mix(g, x, self)


def load_channel_mix(source: TensorSource, h: Hyperparameters, layer: int) -> ChannelMixWeights:
    """Layer ``layer``'s channel mix; ModelError for tensors that are missing."""
    b = f"blk.{layer}.channel_mix_"
    gate = source.optional_linear(f"{b}receptance")
    names = ["lerp_k"] if gate is None else ["lerp_k", "lerp_r"]
    shares = [load_shares(source, b + name, 1, h.n_embd)[0] for name in names]
    return ChannelMixWeights(
        tuple(shares), source.linear(f"{b}key", h.n_embd), source.linear(f"{b}value"), gate
    )


def channel_mix(g: Graph, x: Rows, w: ChannelMixWeights) -> Rows:
    """V relu(K x_k)^2, times sigmoid(R x_r) if there is a gate, of shifted tokens."""
    first, *second = shifted(g, x, w.shares)
    y = g.activate(g.linear(first, w.key), "relu2")
    if w.gate is None:
        return g.output(y, w.value)
    return g.activate(g.linear(second[0], w.gate), "sigmoid", times=g.linear(y, w.value))
