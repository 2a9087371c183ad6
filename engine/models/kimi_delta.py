"""Kimi's delta attention (https://arxiv.org/abs/2510.26692): the gated delta rule with a gate for
every key, convolved Q, K and V, and a gated norm before the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import ModelError
from engine.models.arch import Hyperparameters
from engine.models.attention import apply_gate, project
from engine.models.delta_net import normalize_keys
from engine.models.linear import linear
from engine.models.short_conv import load_convs
from engine.models.step import Context, Step
from engine.tensors import Linear, TensorSource
from kernels.conv import ConvWeights, conv
from kernels.delta import DeltaRule, delta_rule
from kernels.kv import LayerKV
from kernels.matmul import Activations
from kernels.norm import UNCHANGED, NormWeights, norm
from kernels.scan import Columns
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True)
class KimiDeltaWeights:
    """``decay`` and ``gate`` are one matrix, or two with few values between them."""

    qkv: tuple[Linear, ...]
    conv: ConvWeights
    decay: tuple[Linear, ...]
    beta: Linear
    gate: tuple[Linear, ...]
    rule: DeltaRule
    norm: NormWeights
    output: Linear

    def build(self, context: Context, layer: int, kv: LayerKV) -> KimiDelta:
        return KimiDelta(self, context)


def load_kimi_delta(source: TensorSource, h: Hyperparameters, layer: int) -> KimiDeltaWeights:
    """Layer ``layer``'s delta attention; ModelError for tensors that are missing."""
    b = f"blk.{layer}."
    a, bias = _decay(source, h, f"{b}ssm_a"), source.vector(f"{b}ssm_dt.bias")
    weight = source.vector(f"{b}ssm_norm.weight")
    if a is None or bias is None or weight is None:
        raise ModelError(f"{b}ssm_a, {b}ssm_dt.bias or {b}ssm_norm.weight is missing")
    output = source.linear(f"{b}attn_output")
    n_heads = a.shape[0]
    key = bias.shape[0] // n_heads
    fused = source.has(f"{b}attn_qkv.weight")
    names = ["attn_qkv"] if fused else ["attn_q", "attn_k", "attn_v"]
    return KimiDeltaWeights(
        qkv=source.stacked([source.part(b + name) for name in names]),
        conv=load_convs(source, [f"{b}ssm_conv1d_{x}" for x in "qkv"]),
        decay=_one_or_two(source, f"{b}ssm_f"),
        beta=source.linear(f"{b}ssm_beta"),
        gate=_one_or_two(source, f"{b}ssm_g"),
        rule=DeltaRule(
            n_heads, key, output.matrix.n_cols // n_heads, a, bias, gate_per_key=True,
            lower=h.kda_lower,
        ),
        norm=NormWeights(weight, h.eps),
        output=output,
    )  # fmt: skip


def _decay(source: TensorSource, h: Hyperparameters, name: str) -> Tensor | None:
    """The decay's factor of each head, with the sign that delta.cl wants."""
    a = source.floats(name)
    if a is None:
        return None
    return source.upload(-a if h.kda_lower and h.arch.kda_negated else a)


def _one_or_two(source: TensorSource, name: str) -> tuple[Linear, ...]:
    if not source.has(f"{name}_a.weight"):
        return (source.linear(name),)
    second = source.optional_linear(f"{name}_b")
    first = source.linear(f"{name}_a")
    return (first,) if second is None else (first, second)


class KimiDelta:
    """Delta attention of one layer with its states."""

    def __init__(self, weights: KimiDeltaWeights, context: Context) -> None:
        workspace, w, rule = context.workspace, weights, weights.rule
        self._w, self._c = weights, context
        self._rows = workspace.rows("delta inputs", w.conv.n_channels)
        self._qkv = workspace.rows("delta qkv", w.conv.n_channels)
        self._decay = workspace.rows("delta decay", rule.n_heads * rule.key)
        self._beta = workspace.rows("delta rates", rule.n_heads)
        self._gate = workspace.rows("delta gate", w.gate[-1].matrix.n_rows)
        self._yield = workspace.rows("delta yield", rule.n_heads * rule.value)
        self._out = workspace.activations("delta out", [w.output])
        device, states = context.device, context.states
        self._conv_state = states.rows(device, *w.conv.state_shape)
        self._state = states.rows(device, rule.n_heads, rule.value, rule.key)

    @property
    def readers(self) -> Sequence[Linear]:
        return (*self._w.qkv, self._w.decay[0], self._w.beta, self._w.gate[0])

    def prepare(self, step: Step, stream: Tensor) -> None:
        pass

    def record(self, step: Step, x: Activations, out: Tensor, *, add: bool) -> None:
        w, inputs, rule = self._w, self._c.inputs, self._w.rule
        project(step, self._c, w.qkv, x, self._rows)
        self._through(step, w.decay, x, self._decay)
        self._through(step, (w.beta,), x, self._beta)
        conv(
            step.tape, self._rows, w.conv, inputs.sequences, self._conv_state, self._qkv,
            silu=True,
        )  # fmt: skip
        normalize_keys(step, self._qkv, 2 * rule.n_heads, rule.key, self._c.h.eps)
        n_keys = rule.n_heads * rule.key
        delta_rule(
            step.tape, rule, Columns(self._qkv), Columns(self._qkv, n_keys),
            Columns(self._qkv, 2 * n_keys), Columns(self._beta), Columns(self._decay),
            inputs.sequences, self._state, self._yield,
        )  # fmt: skip
        n, shape = rule.n_heads, self._yield.shape
        heads = Tensor(self._yield.buffer, (shape[0] * n, rule.value), self._yield.dtype)
        norm(step.tape, heads, w.norm, Activations(rule.value, heads), times=n)
        self._through(step, w.gate, x, self._gate)
        apply_gate(step, self._gate, self._yield, self._out, "sigmoid")
        scale = self._c.h.residual_scale
        linear(step, self._c, w.output, self._out, out, add=add, scale=scale)

    def _through(self, step: Step, matrices: Sequence[Linear], x: Activations, out: Tensor) -> None:
        """One matrix after the other."""
        if len(matrices) == 2:
            low = self._c.workspace.rows("delta low", matrices[0].matrix.n_rows)
            self._through(step, matrices[:1], x, low)
            x = self._c.workspace.activations("delta low read", matrices[1:])
            norm(step.tape, low, UNCHANGED, x)
        project(step, self._c, matrices[-1:], x, out)
