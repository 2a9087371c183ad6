"""Feed-forward networks: gated (one paired matrix, or two) or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.models.arch import Hyperparameters
from engine.models.linear import linear
from engine.models.step import Context, Step
from engine.tensors import Linear, Part, TensorSource
from kernels.activate import activate, activate_glu
from kernels.kv import LayerKV
from kernels.matmul import Activations, fuses_quantization, glu
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True)
class FFNWeights:
    """``first`` is gate and up paired, or gate and up, or up alone where nothing is gated."""

    first: tuple[Linear, ...]
    down: Linear
    divisors: Tensor | None = None  # of the activation's output

    def build(self, context: Context, layer: int, kv: LayerKV) -> FFN:
        return FFN(self, context)


def load_ffn(source: TensorSource, h: Hyperparameters, layer: int, suffix: str = "") -> FFNWeights:
    """The FFN of a layer, or with a suffix a part of one, as ``ffn_up_shexp``."""
    b = f"blk.{layer}."
    if h.image_experts:
        gate_, up_, down_ = (source.by_kind(b, f"ffn_{x}", x) for x in ("gate", "up", "down"))
        return FFNWeights((gate_, up_), down_)
    down = source.linear(f"{b}ffn_down{suffix}")
    n_ff = down.matrix.n_cols
    up = source.part(f"{b}ffn_up{suffix}")
    if source.has(f"{b}ffn_gate{suffix}.weight"):
        gate = source.part(f"{b}ffn_gate{suffix}")
        source.check_rows(f"{b}ffn_gate{suffix}.weight", n_ff)
        source.check_rows(f"{b}ffn_up{suffix}.weight", n_ff)
        return FFNWeights(_gate_and_up(source, gate, up), down)
    if up.n_rows == 2 * n_ff:
        return FFNWeights(_gate_and_up(source, up.rows(0, n_ff), up.rows(n_ff, 2 * n_ff)), down)
    source.check_rows(f"{b}ffn_up{suffix}.weight", n_ff)
    return FFNWeights(source.stacked([up]), down, source.vector(f"{b}ffn.act.scales"))


def load_bare_ffn(source: TensorSource, h: Hyperparameters) -> FFNWeights:
    """An FFN that is its activation alone, between matrices that change nothing."""
    same = Linear(source.float_matrix(np.eye(h.n_embd, dtype=np.float32)))
    return FFNWeights((same,), same)


def _gate_and_up(source: TensorSource, gate: Part, up: Part) -> tuple[Linear, ...]:
    """One matrix, unless they differ in type, or adapters change what they yield."""
    if gate.raw.type == up.raw.type and not gate.updates and not up.updates:
        return (source.paired(gate, up),)
    return (*source.stacked([gate]), *source.stacked([up]))


class FFN:
    """An FFN with the memory that it needs."""

    def __init__(
        self,
        weights: FFNWeights,
        context: Context,
        scale: float | None = None,
        limit: float = 0.0,
    ) -> None:
        """``scale`` of what it yields, if not the model's residual scale; ``limit`` of gate and
        up, if it is not 0."""
        self._w, self._c, self._limit = weights, context, limit
        self._scale = context.h.residual_scale if scale is None else scale
        workspace, n_ff = context.workspace, weights.down.matrix.n_cols
        first = weights.first[0].matrix
        self._hidden = workspace.activations(
            "hidden",
            [weights.down],
            floats=self._is_paired and not fuses_quantization(context.device, first),
        )  # fmt: skip
        self._parts = () if self._is_paired else tuple(
            workspace.rows(f"ffn {i}", n_ff) for i in range(len(weights.first))
        )  # fmt: skip

    @property
    def _is_paired(self) -> bool:
        return self._w.first[0].matrix.paired

    @property
    def readers(self) -> Sequence[Linear]:
        return self._w.first

    def prepare(self, step: Step, stream: Tensor) -> None:
        pass

    def record(self, step: Step, x: Activations, out: Tensor, *, add: bool) -> None:
        tape, counts, tile = step.tape, self._c.inputs.counts, step.tile
        first, down = self._w.first[0], self._w.down
        activation = self._c.h.arch.glu(self._limit)
        if self._is_paired:
            glu(
                tape, first.matrix, x, self._hidden, counts, activation=activation, tile=tile,
                bias=first.bias, limit=self._limit,
            )  # fmt: skip
        else:
            for weights, part in zip(self._w.first, self._parts, strict=True):
                linear(step, self._c, weights, x, part)
            self._activate(step, activation)
        linear(step, self._c, down, self._hidden, out, add=add, scale=self._scale)

    def _activate(self, step: Step, activation: str) -> None:
        if len(self._parts) == 2:
            activate_glu(
                step.tape, *self._parts, self._hidden, activation=activation, limit=self._limit
            )
        else:
            activate(
                step.tape, self._parts[0], self._hidden, activation=activation,
                divisors=self._w.divisors,
            )  # fmt: skip
