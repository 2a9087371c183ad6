"""The head of a reranker or classifier: from a token's hidden state to scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.recording.step import Step, Workspace
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.matrix.activate import activate
from gguf_serve.kernels.matrix.matmul import matmul
from gguf_serve.kernels.opencl.tape import OUTPUTS
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.rows.norm import NormWeights, norm


@dataclass(frozen=True, slots=True)
class RankWeights:
    """``dense``, its activation and norm, then ``output``; one of the matrices may be missing."""

    dense: Linear | None
    norm: NormWeights
    output: Linear | None

    @property
    def readers(self) -> Sequence[Linear]:
        """The matrix that reads the hidden state."""
        first = self.dense or self.output
        return () if first is None else (first,)


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
    return weights if weights.readers else None


class RankHead:
    """The head with its memory: ``scores`` is float32 [n_outputs, scores]."""

    def __init__(
        self, weights: RankWeights, h: Hyperparameters, workspace: Workspace, n_outputs: int
    ) -> None:
        self._w = weights
        self._activation = "gelu" if "gelu_rank_head" in h.arch.quirks else "tanh"
        last = weights.output or weights.dense
        n_scores = last.matrix.n_rows if last else 0
        self.scores = workspace.tensor("scores", n_outputs, n_scores)
        self._dense = None if weights.dense is None else workspace.tensor(
            "rank dense", n_outputs, weights.dense.matrix.n_rows
        )  # fmt: skip
        self._normed = None if weights.output is None else workspace.activations(
            "rank normed", [weights.output], n_rows=n_outputs
        )  # fmt: skip

    def record(self, step: Step, x: Activations, counts: Tensor) -> None:
        """The scores of the rows of ``x``, counts[OUTPUTS] of them."""
        w = self._w
        if w.dense is not None and self._dense is not None:
            self._matmul(step, w.dense, x, self._dense, counts)
            out = self.scores if w.output is None else self._dense
            made = Activations(self._dense.shape[1], out)
            activate(step.tape, self._dense, made, activation=self._activation, count=OUTPUTS)
            if self._normed is None:
                return
            norm(step.tape, self._dense, w.norm, self._normed, count=OUTPUTS)
            x = self._normed
        if w.output is not None:
            self._matmul(step, w.output, x, self.scores, counts)

    def _matmul(
        self, step: Step, linear: Linear, x: Activations, out: Tensor, counts: Tensor
    ) -> None:
        matmul(
            step.tape, linear.matrix, x, out, counts, tile=step.mode.output_tile, count=OUTPUTS,
            bias=linear.bias,
        )  # fmt: skip
