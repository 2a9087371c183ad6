"""Gated delta net (https://arxiv.org/abs/2412.06464), and Kimi's delta attention with a gate
per key (https://arxiv.org/abs/2510.26692): linear attention with a state matrix per head."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.layers.recurrent.short_conv import load_convs
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, Part, TensorSource
from gguf_serve.kernels.recurrent.conv import ConvWeights
from gguf_serve.kernels.recurrent.delta import DeltaRule
from gguf_serve.kernels.rows.norm import NormWeights


class DeltaNetWeights(Struct, frozen=True):
    """``inputs`` yields Q, K, V and z; ``rates`` beta and the decay of each head."""

    inputs: tuple[Linear, ...]
    rates: tuple[Linear, ...]
    conv: ConvWeights
    rule: DeltaRule
    n_key_heads: int
    norm: NormWeights
    output: Linear

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return delta_net(g, x, self)


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


def delta_net(g: Graph, x: Rows, w: DeltaNetWeights) -> Rows:
    """W (norm(y) * act(z)), y the gated delta rule over convolved Q, K and V."""
    rule, n_keys = w.rule, w.n_key_heads * w.rule.key
    n_values = rule.n_heads * rule.value
    qkv, z = g.linear(x, w.inputs).split(w.conv.n_channels, n_values)
    beta, decay = g.linear(x, w.rates).split(rule.n_heads, rule.n_heads)
    q, k, v = g.conv(qkv, w.conv, silu=True).split(n_keys, n_keys, n_values)
    normalize_keys(g, q, k, rule.key)
    y = g.delta_rule(rule, q, k, v, beta, decay)
    y = g.norm(y.by_head(rule.n_heads), w.norm)
    gate = "sigmoid" if "sigmoid_delta_gate" in g.h.arch.quirks else "silu"
    return g.output(g.activate(z, gate, times=y), w.output)


def normalize_keys(g: Graph, q: Rows, k: Rows, key: int) -> None:
    """Each head of Q and K, which lie side by side, to the norm that the rule wants."""
    weights = NormWeights(None, g.h.eps / key, weightless=True)
    both = replace(q, width=q.width + k.width)
    g.normalize(both, weights, groups=both.width // key)
