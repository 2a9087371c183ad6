"""LFM2's mixer: a gated convolution over a few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.models.linear import linear
from engine.models.step import Context, Step
from engine.tensors import Linear, TensorSource
from kernels.conv import ConvWeights, conv
from kernels.kv import LayerKV
from kernels.matmul import Activations
from kernels.norm import UNCHANGED, norm
from kernels.tensor import Tensor


def load_convs(source: TensorSource, names: Sequence[str]) -> ConvWeights:
    """Convolutions over channels that lie side by side, as one.

    The file has the taps of a channel side by side, kernels want channels side by side.
    """
    columns = []
    for name in names:
        taps = source.shape(f"{name}.weight")[0]
        array = source.floats(f"{name}.weight")
        if array is not None:
            columns.append(array.reshape(-1, taps).T)
    weights = np.ascontiguousarray(np.concatenate(columns, axis=1))
    return ConvWeights(source.upload(weights), source.vector(f"{names[0]}.bias"))


@dataclass(frozen=True, slots=True)
class ShortConvWeights:
    """``inputs`` yields two gates and what is convolved between them."""

    inputs: Linear
    conv: ConvWeights
    output: Linear

    def build(self, context: Context, layer: int, kv: LayerKV) -> ShortConv:
        return ShortConv(self, context)


def load_short_conv(source: TensorSource, layer: int) -> ShortConvWeights:
    """Layer ``layer``'s convolution; ModelError for tensors that are missing."""
    b = f"blk.{layer}.shortconv."
    return ShortConvWeights(
        source.linear(f"{b}in_proj"),
        load_convs(source, [f"{b}conv"]),
        source.linear(f"{b}out_proj"),
    )


class ShortConv:
    """A gated convolution with its state."""

    def __init__(self, weights: ShortConvWeights, context: Context) -> None:
        workspace, n = context.workspace, weights.conv.n_channels
        self._w, self._c = weights, context
        self._rows = workspace.rows("conv inputs", weights.inputs.matrix.n_rows)
        self._convolved = workspace.rows("convolved", n)
        self._out = workspace.activations("conv out", [weights.output])
        self._state = context.states.rows(context.device, *weights.conv.state_shape)

    @property
    def readers(self) -> Sequence[Linear]:
        return (self._w.inputs,)

    def prepare(self, step: Step, stream: Tensor) -> None:
        pass

    def record(self, step: Step, x: Activations, out: Tensor, *, add: bool) -> None:
        inputs, w, n = self._c.inputs, self._w, self._w.conv.n_channels
        linear(step, self._c, w.inputs, x, self._rows)
        conv(
            step.tape, self._rows, w.conv, inputs.sequences, self._state, self._convolved,
            x_at=2 * n, gate_at=0, out_gate_at=n,
        )  # fmt: skip
        norm(step.tape, self._convolved, UNCHANGED, self._out)
        scale = self._c.h.residual_scale
        linear(step, self._c, w.output, self._out, out, add=add, scale=scale)
