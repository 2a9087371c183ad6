"""Kimi's delta attention (https://arxiv.org/abs/2510.26692): the gated delta rule with a gate for
every key, convolved Q, K and V, and a gated norm before the output."""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.layers.recurrent.delta_net import normalize_keys
from gguf_serve.engine.layers.recurrent.short_conv import load_convs
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.recurrent.conv import ConvWeights
from gguf_serve.kernels.recurrent.delta import DeltaRule
from gguf_serve.kernels.rows.norm import NormWeights


class KimiDeltaWeights(Struct, frozen=True):
    """``decay`` and ``gate`` are one matrix, or two with few values between them."""

    qkv: tuple[Linear, ...]
    conv: ConvWeights
    decay: tuple[Linear, ...]
    beta: Linear
    gate: tuple[Linear, ...]
    rule: DeltaRule
    norm: NormWeights
    output: Linear

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return kimi_delta(g, x, self)


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
    """The decay's factor of each head, with the sign that the rule wants."""
    a = source.floats(name)
    if a is None:
        return None
    negated = h.kda_lower and "negated_decay" in h.arch.quirks
    return source.upload(-a if negated else a)


def _one_or_two(source: TensorSource, name: str) -> tuple[Linear, ...]:
    if not source.has(f"{name}_a.weight"):
        return (source.linear(name),)
    second = source.optional_linear(f"{name}_b")
    first = source.linear(f"{name}_a")
    return (first,) if second is None else (first, second)


def kimi_delta(g: Graph, x: Rows, w: KimiDeltaWeights) -> Rows:
    """W (norm(y) * sigmoid(gate x)), y the delta rule with a decay for each key."""
    rule, n_keys = w.rule, w.rule.n_heads * w.rule.key
    qkv, decay, beta = g.linear(x, w.qkv), g.through(x, w.decay), g.linear(x, w.beta)
    q, k, v = g.conv(qkv, w.conv, silu=True).split(n_keys, n_keys, rule.n_heads * rule.value)
    normalize_keys(g, q, k, rule.key)
    y = g.delta_rule(rule, q, k, v, beta, decay)
    y = g.norm(y.by_head(rule.n_heads), w.norm)
    return g.output(g.activate(g.through(x, w.gate), "sigmoid", times=y), w.output)
