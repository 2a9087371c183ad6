"""MiniMax-01's lightning attention (https://arxiv.org/abs/2501.08313): linear attention with a
decay per head and layer, a norm, and a gate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.norm import NormWeights


class LightningWeights(Struct, frozen=True):
    """``qkv`` yields Q, K and V head by head; ``decay`` is a factor for each head."""

    qkv: Linear
    decay: Tensor
    norm: NormWeights
    gate: Linear
    output: Linear
    head: int

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return lightning(g, x, self)


def load_lightning(source: TensorSource, h: Hyperparameters, layer: int) -> LightningWeights:
    """Layer ``layer``'s linear attention; ModelError for tensors that are missing."""
    b = f"blk.{layer}."
    weight = source.vector(f"{b}attn_norm_2.weight")
    if weight is None or weight.shape[0] % h.head:
        raise ModelError(f"{b}attn_norm_2.weight is missing, or not of whole heads of {h.head}")
    n_heads = weight.shape[0] // h.head
    qkv = source.linear(f"{b}attn_qkv", h.n_embd)
    source.check_rows(f"{b}attn_qkv.weight", 3 * n_heads * h.head)
    return LightningWeights(
        qkv,
        source.upload(decays(n_heads, layer, h.n_layers)),
        NormWeights(weight, h.eps),
        source.linear(f"{b}attn_gate", h.n_embd),
        source.linear(f"{b}attn_output", n_heads * h.head),
        h.head,
    )


def decays(n_heads: int, layer: int, n_layers: int) -> npt.NDArray[np.float32]:
    """What a head's state is multiplied with at every token: ALiBi's slopes as exponents, less
    in later layers."""
    first = 2.0 ** -(2.0 ** -(np.log2(n_heads) - 3))
    slopes = first ** np.arange(1, n_heads + 1)
    factors: npt.NDArray[np.float64] = np.exp(-slopes * (1 - layer / max(n_layers - 1, 1) + 1e-5))
    return factors.astype(np.float32)


def lightning(g: Graph, x: Rows, w: LightningWeights) -> Rows:
    """W (norm(y) * sigmoid(gate x)), y linear attention with a decay per head."""
    y = g.norm(g.lightning(g.linear(x, w.qkv), w.decay, w.head), w.norm)
    return g.output(g.activate(g.linear(x, w.gate), "sigmoid", times=y), w.output)
