"""The head of a reranker or classifier: from a hidden state, or the mean of all, to scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.rows.norm import NormWeights

Floats = npt.NDArray[np.float32]


class RankWeights(Struct, frozen=True):
    """``dense``, its activation and norm, then ``output``; one of the matrices may be missing."""

    dense: Linear | None
    norm: NormWeights
    output: Linear | None


def load_rank(source: TensorSource, h: Hyperparameters) -> RankWeights | None:
    """The head's weights, or None if the file has none, or one of the mean."""
    if h.rank_pooling == "mean":
        return None
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


class RankOfMean:
    """A head that reads the mean of a prompt's hidden states, which the host has: there it is."""

    def __init__(self, source: TensorSource, h: Hyperparameters) -> None:
        self._eps = h.eps
        self._dense, self._output = (self._matrix(source, name) for name in ("cls", "cls.output"))
        self._norm, self._norm_bias = (source.floats(f"cls.norm.{x}") for x in ("weight", "bias"))
        self._activation = _gelu if "gelu_rank_head" in h.arch.quirks else np.tanh

    @staticmethod
    def _matrix(source: TensorSource, name: str) -> tuple[Floats, Floats | None] | None:
        flat = source.floats(f"{name}.weight")
        if flat is None:
            return None
        n_columns = source.shape(f"{name}.weight")[0]
        return flat.reshape(-1, n_columns), source.floats(f"{name}.bias")

    def __bool__(self) -> bool:
        return self._dense is not None or self._output is not None

    def __call__(self, mean: Floats) -> Floats:
        """The scores of a mean [n_embd]."""
        x = mean.astype(np.float64)
        if self._dense is not None:
            x = self._activation(_linear(x, *self._dense))
            if self._norm is not None and self._output is not None:
                x = (x - x.mean()) / np.sqrt(x.var() + self._eps) * self._norm
                x = x if self._norm_bias is None else x + self._norm_bias
        if self._output is not None:
            x = _linear(x, *self._output)
        scores: Floats = x.astype(np.float32)
        return scores


def softmax(scores: Floats) -> Floats:
    """Scores as shares of their sum."""
    powers = np.exp(scores.astype(np.float64) - scores.max())
    shares: Floats = (powers / powers.sum()).astype(np.float32)
    return shares


def _linear(
    x: npt.NDArray[np.float64], matrix: Floats, bias: Floats | None
) -> npt.NDArray[np.float64]:
    y: npt.NDArray[np.float64] = matrix @ x
    return y if bias is None else y + bias


def _gelu(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """As kernels/include/activation.cl has it, by tanh."""
    y: npt.NDArray[np.float64] = 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return y
