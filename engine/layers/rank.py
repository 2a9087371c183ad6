"""The head of a reranker or classifier: from a token's hidden state to scores."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.rows.norm import NormWeights


@dataclass(frozen=True, slots=True)
class RankWeights:
    """``dense``, its activation and norm, then ``output``; one of the matrices may be missing."""

    dense: Linear | None
    norm: NormWeights
    output: Linear | None


def load_rank(source: TensorSource, h: Hyperparameters) -> RankWeights | None:
    """The head's weights, or None if the file has none."""
    weights = RankWeights(
        source.optional_linear("cls"),
        NormWeights(
            source.vector("cls.norm.weight"), h.eps, source.vector("cls.norm.bias"),
            layer=h.arch.layer_norm,
        ),
        source.optional_linear("cls.output"),
    )  # fmt: skip
    return weights if weights.dense or weights.output else None


def rank(g: Graph, x: Rows, w: RankWeights) -> Rows:
    """The scores of hidden states."""
    if w.dense is not None:
        activation = "gelu" if "gelu_rank_head" in g.h.arch.quirks else "tanh"
        x = g.activate(g.linear(x, w.dense), activation)
        x = x if w.output is None else g.norm(x, w.norm)
    return x if w.output is None else g.linear(x, w.output)
