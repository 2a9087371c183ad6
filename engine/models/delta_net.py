"""Gated delta net (https://arxiv.org/abs/2412.06464), and Kimi's delta attention with a gate
per key (https://arxiv.org/abs/2510.26692): linear attention with a state matrix per head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import ModelError
from engine.models.arch import Hyperparameters
from engine.models.attention import project
from engine.models.linear import linear
from engine.models.short_conv import load_convs
from engine.models.step import Context, Step
from engine.tensors import Linear, Part, TensorSource
from kernels.activate import activate
from kernels.conv import ConvWeights, conv
from kernels.delta import DeltaRule, delta_rule
from kernels.kv import LayerKV
from kernels.matmul import Activations
from kernels.norm import NormWeights, norm
from kernels.scan import Columns
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True)
class DeltaNetWeights:
    """``inputs`` yields Q, K, V and z; ``rates`` beta and the decay of each head."""

    inputs: tuple[Linear, ...]
    rates: tuple[Linear, ...]
    conv: ConvWeights
    rule: DeltaRule
    n_key_heads: int
    norm: NormWeights
    output: Linear

    def build(self, context: Context, layer: int, kv: LayerKV) -> DeltaNet:
        return DeltaNet(self, context)


def load_delta_net(source: TensorSource, h: Hyperparameters, layer: int) -> DeltaNetWeights:
    """Layer ``layer``'s linear attention; ModelError for tensors that are missing."""
    b = f"blk.{layer}."
    output = source.linear(f"{b}ssm_out")
    a, bias = source.vector(f"{b}ssm_a"), source.vector(f"{b}ssm_dt.bias")
    weight = source.vector(f"{b}ssm_norm.weight")
    if a is None or bias is None or weight is None:
        raise ModelError(f"{b}ssm_a, {b}ssm_dt.bias or {b}ssm_norm.weight is missing")
    n_heads, key = a.shape[0], h.ssm_state
    value = output.matrix.n_cols // n_heads
    conv_weights = load_convs(source, [f"{b}ssm_conv1d"])
    n_key_heads = (conv_weights.n_channels - n_heads * value) // (2 * key)
    separate = source.has(f"{b}ssm_beta.weight")
    return DeltaNetWeights(
        inputs=source.stacked(_inputs(source, b, n_key_heads, key, n_heads * value)),
        rates=source.stacked(_rates(source, b, n_key_heads)),
        conv=conv_weights,
        rule=DeltaRule(n_heads, key, value, a, bias, n_heads // n_key_heads, tiled=separate),
        n_key_heads=n_key_heads,
        norm=NormWeights(weight, h.eps),
        output=output,
    )


def _inputs(source: TensorSource, b: str, n_key_heads: int, key: int, n_values: int) -> list[Part]:
    """Q, K, V and z of all heads; where the file has them head by head, in another order."""
    if source.has(f"{b}attn_qkv.weight") and source.has(f"{b}attn_gate.weight"):
        return [source.part(f"{b}attn_qkv"), source.part(f"{b}attn_gate")]
    whole, v = source.part(f"{b}ssm_in"), n_values // n_key_heads
    sizes, parts, at = (key, key, v, v), list[list[Part]]([[], [], [], []]), 0
    for _ in range(n_key_heads):
        for kind, size in zip(parts, sizes, strict=True):
            kind.append(whole.rows(at, at + size))
            at += size
    return [part for kind in parts for part in kind]


def _rates(source: TensorSource, b: str, n_key_heads: int) -> list[Part]:
    if source.has(f"{b}ssm_beta.weight"):
        return [source.part(f"{b}ssm_beta"), source.part(f"{b}ssm_alpha")]
    whole = source.part(f"{b}ssm_ba")
    size = whole.n_rows // (2 * n_key_heads)
    halves = [whole.rows(i * size, (i + 1) * size) for i in range(2 * n_key_heads)]
    return [*halves[::2], *halves[1::2]]


class DeltaNet:
    """Linear attention of one layer with its states."""

    def __init__(self, weights: DeltaNetWeights, context: Context) -> None:
        workspace, w, rule = context.workspace, weights, weights.rule
        self._w, self._c = weights, context
        self._n_values = rule.n_heads * rule.value
        self._rows = workspace.rows("delta inputs", w.conv.n_channels + self._n_values)
        self._rates = workspace.rows("delta rates", 2 * rule.n_heads)
        self._qkv = workspace.rows("delta qkv", w.conv.n_channels)
        self._yield = workspace.rows("delta yield", self._n_values)
        self._out = workspace.activations("delta out", [w.output])
        device, states = context.device, context.states
        self._conv_state = states.rows(device, *w.conv.state_shape)
        self._state = states.rows(device, rule.n_heads, rule.value, rule.key)

    @property
    def readers(self) -> Sequence[Linear]:
        return (*self._w.inputs, *self._w.rates)

    def prepare(self, step: Step, stream: Tensor) -> None:
        pass

    def record(self, step: Step, x: Activations, out: Tensor, *, add: bool) -> None:
        w, inputs, tape = self._w, self._c.inputs, step.tape
        rule, n_keys = w.rule, w.n_key_heads * w.rule.key
        project(step, self._c, w.inputs, x, self._rows)
        project(step, self._c, w.rates, x, self._rates)
        conv(tape, self._rows, w.conv, inputs.sequences, self._conv_state, self._qkv, silu=True)
        normalize_keys(step, self._qkv, 2 * w.n_key_heads, rule.key, self._c.h.eps)
        delta_rule(
            tape, rule, Columns(self._qkv), Columns(self._qkv, n_keys),
            Columns(self._qkv, 2 * n_keys), Columns(self._rates),
            Columns(self._rates, rule.n_heads), inputs.sequences, self._state, self._yield,
        )  # fmt: skip
        self._norm(step)
        activate(
            tape, self._rows, self._out, activation=self._c.h.arch.delta_gate,
            x_at=w.conv.n_channels, y=self._yield,
        )  # fmt: skip
        scale = self._c.h.residual_scale
        linear(step, self._c, w.output, self._out, out, add=add, scale=scale)

    def _norm(self, step: Step) -> None:
        n, shape = self._w.rule.n_heads, self._yield.shape
        heads = Tensor(self._yield.buffer, (shape[0] * n, shape[1] // n), self._yield.dtype)
        norm(step.tape, heads, self._w.norm, Activations(heads.shape[1], heads), times=n)


def normalize_keys(step: Step, rows: Tensor, n_heads: int, key: int, eps: float) -> None:
    """Each of the first heads of a row, in place, to the norm that delta.cl wants."""
    weights = NormWeights(None, eps / key, weightless=True)
    norm(step.tape, rows, weights, Activations(n_heads * key, rows), groups=n_heads)
