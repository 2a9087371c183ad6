"""MiniMax-01's lightning attention (https://arxiv.org/abs/2501.08313): linear attention with a
decay per head and layer, a norm, and a gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.errors import ModelError
from engine.models.arch import Hyperparameters
from engine.models.attention import apply_gate, project
from engine.models.linear import linear
from engine.models.step import Context, Step
from engine.tensors import Linear, TensorSource
from kernels.kv import LayerKV
from kernels.lightning import lightning
from kernels.matmul import Activations
from kernels.norm import NormWeights, norm
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True)
class LightningWeights:
    """``qkv`` yields Q, K and V head by head; ``decay`` is a factor for each head."""

    qkv: Linear
    decay: Tensor
    norm: NormWeights
    gate: Linear
    output: Linear
    head: int

    def build(self, context: Context, layer: int, kv: LayerKV) -> Lightning:
        return Lightning(self, context)


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


class Lightning:
    """Linear attention of one layer with its states."""

    def __init__(self, weights: LightningWeights, context: Context) -> None:
        workspace, w = context.workspace, weights
        n_heads = w.decay.shape[0]
        self._w, self._c = weights, context
        self._rows = workspace.rows("lightning qkv", 3 * n_heads * w.head)
        self._yield = workspace.rows("lightning yield", n_heads * w.head)
        self._gate = workspace.rows("lightning gate", n_heads * w.head)
        self._out = workspace.activations("lightning out", [w.output])
        self._state = context.states.rows(context.device, n_heads, w.head, w.head)

    @property
    def readers(self) -> Sequence[Linear]:
        return (self._w.qkv, self._w.gate)

    def prepare(self, step: Step, stream: Tensor) -> None:
        pass

    def record(self, step: Step, x: Activations, out: Tensor, *, add: bool) -> None:
        w, inputs = self._w, self._c.inputs
        project(step, self._c, [w.qkv], x, self._rows)
        lightning(
            step.tape, self._rows, w.decay, w.head, inputs.sequences, self._state, self._yield
        )
        norm(step.tape, self._yield, w.norm, Activations(self._yield.shape[1], self._yield))
        project(step, self._c, [w.gate], x, self._gate)
        apply_gate(step, self._gate, self._yield, self._out, "sigmoid")
        scale = self._c.h.residual_scale
        linear(step, self._c, w.output, self._out, out, add=add, scale=scale)
