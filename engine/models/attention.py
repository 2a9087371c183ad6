"""Attention over the KV cache: Q, K, V, what is done to them, and the output matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.models.arch import Hyperparameters
from engine.models.indexer import IndexerWeights, build_indexer, load_indexer
from engine.models.linear import linear
from engine.models.step import Context, Step
from engine.tensors import Linear, Part, TensorSource
from kernels import attention as attn
from kernels.activate import activate
from kernels.attention import Mask
from kernels.kv import LayerKV
from kernels.matmul import Activations
from kernels.norm import NormWeights, norm
from kernels.rope import HeadNorm, RopeStyle, Temperature, qkv_rows, rope_kv
from kernels.tensor import Tensor, upload


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """``qkv`` has one matrix per tensor type, in Q, K, V order."""

    qkv: tuple[Linear, ...]
    output: Linear
    head_norms: tuple[Tensor | None, Tensor | None]  # of each head of Q and K
    whole_norms: tuple[NormWeights, NormWeights] | None  # of Q and K as a whole
    gate: tuple[Linear, ...]  # per value or per head; empty: none
    sinks: Tensor | None
    indexer: IndexerWeights | None = None

    def build(self, context: Context, layer: int, kv: LayerKV) -> Attention:
        return Attention(self, context, layer, kv)


def load_attention(source: TensorSource, h: Hyperparameters, layer: int) -> AttentionWeights:
    """Layer ``layer``'s attention; ModelError for tensors that are missing or do not fit."""
    b = f"blk.{layer}."
    if h.image_experts:
        qkv, output = (source.by_kind(b, name) for name in ("attn_qkv", "attn_output"))
        return AttentionWeights((qkv,), output, (None, None), None, (), None)
    q, k, v, gate = _qkv_parts(source, h, layer)
    output = source.linear(f"{b}attn_output", h.n_heads[layer] * h.head_v)
    q_norm, k_norm = (source.table(f"{b}attn_{x}_norm.weight") for x in "qk")
    whole = _whole(source, h, layer, q_norm, k_norm)
    return AttentionWeights(
        qkv=source.stacked([*q, k, v]),
        output=output,
        head_norms=(None, None) if whole is not None else _head_norms(h, layer, q_norm, k_norm),
        whole_norms=whole,
        gate=source.stacked(gate),
        sinks=source.vector(f"{b}attn_sinks.weight"),
        indexer=load_indexer(source, h, layer),
    )


def _qkv_parts(
    source: TensorSource, h: Hyperparameters, layer: int
) -> tuple[list[Part], Part, Part, list[Part]]:
    """Q (in pieces), K, V and the gate (in pieces), from one tensor or from several."""
    b = f"blk.{layer}."
    n_q, n_k, n_v = (
        h.n_heads[layer] * h.head, h.n_kv[layer] * h.head, h.n_kv[layer] * h.head_v,
    )  # fmt: skip
    gate = [source.part(f"{b}attn_gate", h.n_embd)] if source.has(f"{b}attn_gate.weight") else []
    if source.has(f"{b}attn_qkv.weight"):
        whole = source.part(f"{b}attn_qkv", h.n_embd)
        at_k, at_v = (n_q, 2 * n_q) if h.arch.fused_thirds else (n_q, n_q + n_k)
        source.check_rows(f"{b}attn_qkv.weight", at_v + n_v, more=True)
        k, v = whole.rows(at_k, at_k + n_k), whole.rows(at_v, at_v + n_v)
        return [whole.rows(0, n_q)], k, v, gate
    q, k, v = (source.part(f"{b}attn_{x}", h.n_embd) for x in "qkv")
    source.check_rows(f"{b}attn_k.weight", n_k)
    source.check_rows(f"{b}attn_v.weight", n_v)
    if q.n_rows == 2 * n_q:  # each head's query is followed by its gate
        halves = [q.rows(i * h.head, (i + 1) * h.head) for i in range(2 * h.n_heads[layer])]
        return halves[::2], k, v, halves[1::2]
    source.check_rows(f"{b}attn_q.weight", n_q)
    return [q], k, v, gate


def _whole(
    source: TensorSource, h: Hyperparameters, layer: int, q: Tensor | None, k: Tensor | None
) -> tuple[NormWeights, NormWeights] | None:
    """Norms of Q and K as a whole, which have a weight for every value of all heads."""
    if q is None or k is None or len(q.shape) > 1 or h.n_heads[layer] == 1:
        return None
    if q.shape[0] != h.n_heads[layer] * h.head:
        return None
    q_bias, k_bias = (source.vector(f"blk.{layer}.attn_{x}_norm.bias") for x in "qk")
    return (
        NormWeights(q, h.eps, q_bias, layer=h.arch.layer_norm),
        NormWeights(k, h.eps, k_bias, layer=h.arch.layer_norm),
    )


def _head_norms(
    h: Hyperparameters, layer: int, q: Tensor | None, k: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """A norm of K alone is not used, as in llama.cpp."""
    return (None, None) if q is None else (q, k)


class Attention:
    """Attention of one layer with the memory that it needs."""

    def __init__(self, weights: AttentionWeights, context: Context, layer: int, kv: LayerKV):
        h, workspace = context.h, context.workspace
        self._w, self._c, self._kv = weights, context, kv
        self._n_heads, self._n_kv = h.n_heads[layer], h.n_kv[layer]
        width = sum(part.matrix.n_rows for part in weights.qkv)
        self._qkv = workspace.rows("qkv", width)
        self._gate = workspace.rows("gate", self._gate_width) if weights.gate else None
        fused = attn.fuses_quantization(context.device, h.head_v, plain=not context.flash)
        self._out = workspace.activations("attended", [weights.output], floats=not fused)
        if weights.gate:
            n_cols = weights.output.matrix.n_cols
            self._attended = Activations(n_cols, workspace.rows("attention", n_cols))
        else:
            self._attended = self._out
        self._table = context.rope_tables[h.windowed[layer]] if h.rope[layer] else None
        self._slots, self._paging = context.inputs.paging(h.windowed[layer])
        self._indexer = build_indexer(weights.indexer, context, layer, self._table)
        self._mask = self._make_mask(layer)
        self._norm = self._head_norm(layer)
        self._temperature = self._make_temperature(layer)

    @property
    def readers(self) -> Sequence[Linear]:
        indexer = () if self._indexer is None else self._indexer.readers
        return (*self._w.qkv, *self._w.gate, *indexer)

    @property
    def _gate_width(self) -> int:
        return sum(part.matrix.n_rows for part in self._w.gate)

    def prepare(self, step: Step, stream: Tensor) -> None:
        pass

    def record(self, step: Step, x: Activations, out: Tensor, *, add: bool) -> None:
        h = self._c.h
        project(step, self._c, self._w.qkv, x, self._qkv)
        self._normalize_whole(step)
        rope_kv(
            step.tape, qkv_rows(self._qkv, self._n_heads, self._kv.shape), self._n_heads, self._kv,
            self._table, self._slots,
            style=RopeStyle(h.n_rot, h.neox), scale=h.attention_scale, norm=self._norm,
            clamp=h.clamp_qkv, temperature=self._temperature,
        )  # fmt: skip
        if self._indexer is not None:
            self._indexer.record(step, x, x)
        mode = step.mode.attention
        attn.attention(
            step.tape, self._qkv, self._n_heads, self._kv, self._paging, self._attended,
            self._mask, queries=1 if mode == "single" else self._c.tile_queries,
            split=self._c.split if mode == "split" else None, plain=self._c.plain,
        )  # fmt: skip
        self._apply_gate(step, x)
        scale = h.residual_scale * h.value_scale
        linear(step, self._c, self._w.output, self._out, out, add=add, scale=scale)

    def _normalize_whole(self, step: Step) -> None:
        offset = 0
        for weights in self._w.whole_norms or ():
            n = weights.weight.shape[0] if weights.weight else 0
            here = Activations(n, self._qkv)
            norm(step.tape, self._qkv, weights, here, offset=offset, out_offset=offset)
            offset += n

    def _apply_gate(self, step: Step, x: Activations) -> None:
        if self._gate is None:
            return
        if self._attended.values is not None:
            project(step, self._c, self._w.gate, x, self._gate)
            activation = self._c.h.arch.attention_gate
            apply_gate(step, self._gate, self._attended.values, self._out, activation)

    def _make_mask(self, layer: int) -> Mask:
        h = self._c.h
        return Mask(
            h.window if h.windowed[layer] else 0, h.attention_softcap,
            chunked=h.arch.window_chunked, bidirectional=not h.causal,
            together=self._c.inputs.together, sinks=self._w.sinks,
            selected=None if self._indexer is None else self._indexer.selected,
            by_head=h.sparsity is not None and h.sparsity.by_head,
            slopes=None if not h.alibi_bias else upload(
                self._c.device, alibi_slopes(self._n_heads, h.alibi_bias)
            ),
        )  # fmt: skip

    def _head_norm(self, layer: int) -> HeadNorm | None:
        h, (q, k) = self._c.h, self._w.head_norms
        weightless = h.arch.head_norm_weightless and h.rope[layer] and h.experts.n != 128
        if q is None and not weightless:
            return None
        return HeadNorm(h.eps, q, k, layer=h.arch.layer_norm, after=h.arch.head_norm_after_rope)

    def _make_temperature(self, layer: int) -> Temperature | None:
        h = self._c.h
        if h.temperature is None or (h.arch.window_chunked and h.rope[layer]):
            return None
        return Temperature(self._c.inputs.attention.positions, *h.temperature)


def project(
    step: Step, context: Context, parts: Sequence[Linear], x: Activations, out: Tensor
) -> None:
    """Matrices whose outputs lie side by side in the rows of ``out``."""
    for part in parts:
        linear(step, context, part, x, out, offset=part.offset)


def apply_gate(step: Step, gate: Tensor, values: Tensor, out: Activations, activation: str) -> None:
    """out = values * activation(gate), where the gate has a value for each or for a head."""
    repeat = out.n_cols // gate.shape[1]
    activate(step.tape, gate, out, activation=activation, repeat=repeat, y=values)


def alibi_slopes(n_heads: int, max_bias: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """ALiBi's slope of each head (https://arxiv.org/abs/2108.12409): a geometric sequence for a
    power of two of heads; the rest take every second of the sequence of twice as many."""
    power = 1 << (n_heads.bit_length() - 1)
    slopes = [2.0 ** (-max_bias * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-max_bias * (2 * i + 1) / (2 * power)) for i in range(n_heads - power)]
    return np.array(slopes, np.float32)
