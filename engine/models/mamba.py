"""Mamba (https://arxiv.org/abs/2312.00752) and Mamba 2 (https://arxiv.org/abs/2405.21060).

Mamba makes B, C and the step size from the convolved input; Mamba 2 takes them from its first
matrix, has heads, and norms its output. PLaMo 2 has Mamba's way with Mamba 2's heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.models.arch import Hyperparameters
from engine.models.linear import linear
from engine.models.short_conv import load_convs
from engine.models.step import Context, Step
from engine.tensors import Linear, Part, TensorSource
from kernels.conv import ConvWeights, conv
from kernels.kv import LayerKV
from kernels.matmul import Activations
from kernels.norm import UNCHANGED, NormWeights, norm, quantize
from kernels.scan import Columns, ScanWeights, scan
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True)
class StepSize:
    """Where Mamba 1 gets the step size, B and C from: matrices and norms of their parts."""

    inputs: Linear  # from the convolved input
    dt: Linear
    norms: tuple[NormWeights, NormWeights, NormWeights]  # of the step size, B, C
    dt_at: int
    b_at: int
    c_at: int


@dataclass(frozen=True, slots=True)
class MambaWeights:
    """``inputs`` yields x and z (Mamba 1), or z, x, B, C and the step size (Mamba 2)."""

    inputs: tuple[Linear, ...]
    conv: ConvWeights
    scan: ScanWeights
    step_size: StepSize | None
    norm: NormWeights | None
    output: Linear

    def build(self, context: Context, layer: int, kv: LayerKV) -> Mamba:
        return Mamba(self, context)


def load_mamba(source: TensorSource, h: Hyperparameters, layer: int) -> MambaWeights:
    """Layer ``layer``'s state space; ModelError for tensors that are missing."""
    b = f"blk.{layer}."
    output = source.linear(f"{b}ssm_out")
    n_channels = output.matrix.n_cols
    old = source.has(f"{b}ssm_x.weight")
    a, d = source.table(f"{b}ssm_a"), source.vector(f"{b}ssm_d")
    if a is None or d is None:
        raise AssertionError
    per_state = a.shape[0] == n_channels
    if not per_state:
        a = source.vector(f"{b}ssm_a") or a
    n_heads = d.shape[0]
    bias = source.vector(f"{b}ssm_dt.bias")
    conv_weights = load_convs(source, [f"{b}ssm_conv1d"])
    n_state = h.ssm_state
    groups = 1 if old else (conv_weights.n_channels - n_channels) // (2 * n_state)
    weight = source.vector(f"{b}ssm_norm.weight")
    return MambaWeights(
        inputs=source.stacked(_inputs(source, b, n_channels, n_heads, per_state or not old)),
        conv=conv_weights,
        scan=ScanWeights(a, d, bias, n_channels, n_heads, groups, n_state),
        step_size=_step_size(source, h, b, n_state, first=per_state) if old else None,
        norm=None if weight is None else NormWeights(weight, h.eps),
        output=output,
    )


def _inputs(source: TensorSource, b: str, n_channels: int, n_heads: int, plain: bool) -> list[Part]:
    """The first matrix; where z and x of each head alternate, as x and then z of all."""
    whole = source.part(f"{b}ssm_in")
    if plain:
        return [whole]
    size = n_channels // n_heads
    halves = [whole.rows(i * size, (i + 1) * size) for i in range(2 * n_heads)]
    return [*halves[1::2], *halves[::2]]


def _step_size(
    source: TensorSource, h: Hyperparameters, b: str, n_state: int, *, first: bool
) -> StepSize:
    """``first``: the step size comes before B and C."""

    def weights(name: str) -> NormWeights:
        vector = source.vector(f"{b}ssm_{name}_norm.weight")
        return NormWeights(vector, h.eps, weightless=h.ssm_norms)

    # The bias of the step size is the scan's.
    dt = Linear(source.matrix(f"{b}ssm_dt.weight"))
    rank = dt.matrix.n_cols
    dt_at, b_at = (0, rank) if first else (2 * n_state, 0)
    return StepSize(
        source.linear(f"{b}ssm_x"), dt, (weights("dt"), weights("b"), weights("c")), dt_at, b_at,
        b_at + n_state,
    )  # fmt: skip


class Mamba:
    """A state space of one layer with its states."""

    def __init__(self, weights: MambaWeights, context: Context) -> None:
        workspace, w = context.workspace, weights
        self._w, self._c = weights, context
        self._rows = workspace.rows("ssm inputs", sum(p.matrix.n_rows for p in w.inputs))
        self._yield = workspace.rows("ssm yield", w.scan.n_channels)
        self._out = workspace.activations("ssm out", [w.output])
        self._made = self._rows
        n_conv = w.conv.n_channels
        self._convolved = workspace.rows("ssm convolved", n_conv)
        if w.step_size is not None:
            size = w.step_size
            self._made = workspace.rows("ssm made", size.inputs.matrix.n_rows)
            self._for_size = workspace.activations("ssm convolved", [size.inputs], floats=True)
            self._low = workspace.activations("ssm dt low", [size.dt])
            self._dt = workspace.rows("ssm dt", size.dt.matrix.n_rows)
        device, states = context.device, context.states
        self._conv_state = states.rows(device, *w.conv.state_shape)
        self._state = states.rows(device, w.scan.n_channels, w.scan.n_state)

    @property
    def readers(self) -> Sequence[Linear]:
        return self._w.inputs

    def prepare(self, step: Step, stream: Tensor) -> None:
        pass

    def record(self, step: Step, x: Activations, out: Tensor, *, add: bool) -> None:
        w, inputs, n = self._w, self._c.inputs, self._w.scan.n_channels
        for part in w.inputs:
            linear(step, self._c, part, x, self._rows, offset=part.offset)
        if w.step_size is None:
            x_at, z, dt = n, Columns(self._rows), Columns(self._rows, n + w.conv.n_channels)
        else:
            x_at, z, dt = 0, Columns(self._rows, n), Columns(self._dt)
        conv(
            step.tape, self._rows, w.conv, inputs.sequences, self._conv_state, self._convolved,
            x_at=x_at, silu=True,
        )  # fmt: skip
        bc, b_at, c_at = self._convolved, n, n + w.scan.n_groups * w.scan.n_state
        if w.step_size is not None:
            self._make_step_size(step, w.step_size)
            bc, b_at, c_at = self._made, w.step_size.b_at, w.step_size.c_at
        scan(
            step.tape, w.scan, Columns(self._convolved), dt, bc, b_at, c_at, z,
            inputs.sequences, self._state, self._yield,
        )  # fmt: skip
        groups = 1 if w.norm is None else w.scan.n_groups
        norm(step.tape, self._yield, w.norm or UNCHANGED, self._out, groups=groups)
        scale = self._c.h.residual_scale
        linear(step, self._c, w.output, self._out, out, add=add, scale=scale)

    def _make_step_size(self, step: Step, size: StepSize) -> None:
        """Step size, B and C from the convolved input."""
        tape, n_state = step.tape, self._w.scan.n_state
        if self._for_size.quantized:
            quantize(tape, self._for_size)
        linear(step, self._c, size.inputs, self._for_size, self._made)
        for weights, at in zip(size.norms[1:], (size.b_at, size.c_at), strict=True):
            if weights.defines != ["NORM_NONE"]:
                here = Activations(n_state, self._made)
                norm(tape, self._made, weights, here, offset=at, out_offset=at)
        norm(tape, self._made, size.norms[0], self._low, offset=size.dt_at)
        linear(step, self._c, size.dt, self._low, self._dt)
