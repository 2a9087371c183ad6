"""Attention over the KV cache: Q, K, V, what is done to them, and the output matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.layers.attention.indexer import (
    SELECTION,
    IndexerWeights,
    index,
    load_indexer,
)
from gguf_serve.engine.recording.attention_verbs import Cache, Rotation
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, Part, TensorSource
from gguf_serve.kernels.attention.attention import Mask
from gguf_serve.kernels.attention.rope import QKNorm, RopeStyle, Temperature
from gguf_serve.kernels.opencl.tensor import Tensor, upload
from gguf_serve.kernels.rows.norm import NormWeights

DISTANCE = 128  # from where on all share a bucket
# The name, among what is kept for later entries, of what steps that encode have K and V of
ENCODED = "encoded"


class AttentionWeights(Struct, frozen=True):
    """``qkv`` has one matrix per tensor type, in Q, K, V order: Q alone in layers that share the K
    and V of an earlier one, Q and K where V is K before its norm and rotation."""

    qkv: tuple[Linear, ...]
    output: Linear
    qk_norms_by_head: tuple[Tensor | None, Tensor | None]  # of each head of Q and K
    qk_norms_whole: tuple[NormWeights, NormWeights] | None  # of Q and K as a whole
    qk_biases: tuple[Tensor | None, Tensor | None]  # of the norms of each head
    gate: tuple[Linear, ...]  # per value or per head; empty: none
    norm: NormWeights | None  # of what the output matrix reads
    sinks: Tensor | None
    indexer: IndexerWeights | None = None
    biases: Tensor | None = None  # by distance, see Mask
    of_states: tuple[Linear, ...] = ()  # K and V of a target's states, by the matrices of qkv

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return attention(g, x, self, layer)


def load_attention(source: TensorSource, h: Hyperparameters, layer: int) -> AttentionWeights:
    """Layer ``layer``'s attention; ModelError for tensors that are missing or do not fit."""
    b = f"blk.{layer}."
    if h.image_experts:
        qkv, output = (source.by_kind(b, name) for name in ("attn_qkv", "attn_output"))
        return AttentionWeights((qkv,), output, (None, None), None, (None, None), (), None, None)
    q, kv, gate = _qkv_parts(source, h, layer)
    output = source.linear(f"{b}attn_output", h.n_heads[layer] * h.head_sizes(layer).v)
    q_norm, k_norm = (source.table(f"{b}attn_{x}_norm.weight") for x in "qk")
    whole = _whole(source, h, layer, q_norm, k_norm)
    of_states = source.stacked(kv) if "keys_of_states" in h.arch.quirks else ()
    return AttentionWeights(
        qkv=_qkv_apart(source, q, of_states) if of_states else source.stacked([*q, *kv]),
        output=output,
        qk_norms_by_head=(None, None)
        if whole is not None
        else _qk_norms_by_head(h, layer, q_norm, k_norm),
        qk_norms_whole=whole,
        qk_biases=_qk_biases(source, layer) if whole is None else (None, None),
        gate=source.stacked(gate),
        norm=source.optional_norm(f"{b}attn_sub_norm", h.eps),
        sinks=source.vector(f"{b}attn_sinks.weight"),
        indexer=load_indexer(source, h, layer),
        biases=load_biases(source, h, layer),
        of_states=of_states,
    )


def _qkv_apart(source: TensorSource, q: Sequence[Part], kv: Sequence[Linear]) -> tuple[Linear, ...]:
    n_q = sum(part.n_rows for part in q)
    return (*source.stacked(q), *(replace(each, offset=n_q + each.offset) for each in kv))


def _qkv_parts(
    source: TensorSource, h: Hyperparameters, layer: int
) -> tuple[list[Part], list[Part], list[Part]]:
    """Q (in pieces), what there is of K and V, and the gate (in pieces), from one tensor or from
    several."""
    b, size = f"blk.{layer}.", h.head_sizes(layer)
    n_q, n_k, n_v = h.n_heads[layer] * size.qk, h.n_kv[layer] * size.qk, h.n_kv[layer] * size.v
    has_gate, width = source.has(f"{b}attn_gate.weight"), h.attention_width
    gate = [source.part(f"{b}attn_gate", width)] if has_gate else []
    if source.has(f"{b}attn_qkv.weight"):
        whole = source.part(f"{b}attn_qkv", width)
        at_k, at_v = (n_q, 2 * n_q) if "qkv_in_thirds" in h.arch.quirks else (n_q, n_q + n_k)
        source.check_rows(f"{b}attn_qkv.weight", at_v + n_v, more=True)
        kv = [whole.rows(at_k, at_k + n_k), whole.rows(at_v, at_v + n_v)]
        return [whole.rows(0, n_q)], kv if h.kv_layers[layer] == layer else [], gate
    q, kv = source.part(f"{b}attn_q", width), list[Part]()
    if h.kv_layers[layer] == layer:
        rows = {f"{b}attn_k": n_k, f"{b}attn_v": n_v}
        if "normed_values" in h.arch.quirks and not source.has(f"{b}attn_v.weight"):
            del rows[f"{b}attn_v"]
        for name, n_rows in rows.items():
            kv.append(source.part(name, width))
            source.check_rows(f"{name}.weight", n_rows)
    if q.n_rows == 2 * n_q:  # each head's query is followed by its gate
        halves = [q.rows(i * size.qk, (i + 1) * size.qk) for i in range(2 * h.n_heads[layer])]
        return halves[::2], kv, halves[1::2]
    source.check_rows(f"{b}attn_q.weight", n_q)
    return [q], kv, gate


def _whole(
    source: TensorSource, h: Hyperparameters, layer: int, q: Tensor | None, k: Tensor | None
) -> tuple[NormWeights, NormWeights] | None:
    """Norms of Q and K as a whole, which have a weight for every value of all heads."""
    if q is None or k is None or len(q.shape) > 1 or h.n_heads[layer] == 1:
        return None
    if q.shape[0] != h.n_heads[layer] * h.head_sizes(layer).qk:
        return None
    q_bias, k_bias = (source.vector(f"blk.{layer}.attn_{x}_norm.bias") for x in "qk")
    return (
        NormWeights(q, h.eps, q_bias, layer=h.arch.layer_norm),
        NormWeights(k, h.eps, k_bias, layer=h.arch.layer_norm),
    )


def _qk_norms_by_head(
    h: Hyperparameters, layer: int, q: Tensor | None, k: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """A norm of K alone is not used, as in llama.cpp."""
    return (None, None) if q is None else (q, k)


def _qk_biases(source: TensorSource, layer: int) -> tuple[Tensor | None, Tensor | None]:
    q, k = (source.table(f"blk.{layer}.attn_{x}_norm.bias") for x in "qk")
    return (None, None) if q is None or k is None else (q, k)


def attention(g: Graph, x: Rows, w: AttentionWeights, layer: int) -> Rows:
    """W (softmax(q K) V), times a gate if there is one."""
    h, n_heads = g.h, g.h.n_heads[layer]
    cache = Cache.of_layer(g.context, layer)
    q, *kv = _split(h, g.linear(x, w.qkv), layer)
    for rows, weights in zip((q, *kv[:1]), w.qk_norms_whole or (), strict=False):
        g.normalize(rows, weights)
    k, v = (kv[0], kv[-1]) if kv else (None, None)
    if w.of_states:
        _, *of_states = _split(h, g.linear(g.kept[ENCODED], w.of_states), layer, n_q=0)
        g.store(of_states[0], of_states[-1], cache, _rotation(g, w, layer))
    g.rope(q, k, v, n_heads, cache, _rotation(g, w, layer))
    index(g, x, x, w.indexer, layer, cache.table)
    selected = None if w.indexer is None else g.kept.get(SELECTION)
    y = g.attend(q, n_heads, cache, _mask(g, w, layer), selected=selected)
    if w.gate:
        y = g.activate(g.linear(x, w.gate), h.arch.attention_gate, times=y)
    if w.norm is not None:
        y = g.norm(y, w.norm)
    return g.linear(y, w.output, scale=h.residual_scale * h.value_scale)


def _split(h: Hyperparameters, qkv: Rows, layer: int, n_q: int | None = None) -> list[Rows]:
    """Q, and what there is of K and V; ``n_q``: heads of Q, if not all."""
    n_kv, size = h.n_kv[layer], h.head_sizes(layer)
    n_q = h.n_heads[layer] if n_q is None else n_q
    parts = qkv.split(n_q * size.qk, n_kv * size.qk, n_kv * size.v)
    return [rows for rows in parts if rows.at < qkv.width]


def _rotation(g: Graph, w: AttentionWeights, layer: int) -> Rotation:
    h, (q, k), norm = g.h, w.qk_norms_by_head, None
    quirk = "weightless_head_norms" in h.arch.quirks
    weightless = quirk and h.rope[layer] and h.experts.n != 128
    if q is not None or weightless:
        own = "layer_qk_norm" in h.arch.quirks
        norm = QKNorm(
            1e-5 if own else h.eps, q, k, layer=own or h.arch.layer_norm,
            after=h.arch.head_norm_after_rope, q_bias=w.qk_biases[0], k_bias=w.qk_biases[1],
            values="normed_values" in h.arch.quirks and h.kv_layers[layer] == layer,
        )  # fmt: skip
    temperature = None
    if h.temperature is not None and not ("chunked_windows" in h.arch.quirks and h.rope[layer]):
        temperature = Temperature(g.context.inputs.attention.positions, *h.temperature)
    style = RopeStyle(h.head_sizes(layer).rotated, h.neox)
    return Rotation(style, h.attention_scale, norm, h.clamp_qkv, temperature)


def _mask(g: Graph, w: AttentionWeights, layer: int) -> Mask:
    h, c = g.h, g.context
    both_ways = not h.causal or layer < h.n_encoder
    in_windows = "images_together_in_windows" in h.arch.quirks
    slopes = alibi_slopes(h.n_heads[layer], h.alibi_bias) if h.alibi_bias else None
    return Mask(
        h.window if h.windowed[layer] else 0, h.attention_softcap,
        chunked="chunked_windows" in h.arch.quirks, bidirectional=both_ways,
        past="keys_of_target" in h.arch.quirks,
        together=bool(w.of_states) or (c.inputs.together and (h.windowed[layer] or not in_windows)),
        after=h.n_encoder > 0 and not both_ways, sinks=w.sinks, biases=w.biases,
        by_head=h.sparsity is not None and h.sparsity.by_head,
        slopes=None if slopes is None else upload(c.device, slopes),
    )  # fmt: skip


def alibi_slopes(n_heads: int, max_bias: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """ALiBi's slope of each head (https://arxiv.org/abs/2108.12409): a geometric sequence for a
    power of two of heads; the rest take every second of the sequence of twice as many."""
    power = 1 << (n_heads.bit_length() - 1)
    slopes = [2.0 ** (-max_bias * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-max_bias * (2 * i + 1) / (2 * power)) for i in range(n_heads - power)]
    return np.array(slopes, np.float32)


def load_biases(source: TensorSource, h: Hyperparameters, layer: int) -> Tensor | None:
    """What Mask.biases is for a layer: of its own biases, or the first layer's of its stack; None
    for models without. ModelError for tensors that are missing or do not fit."""
    if not h.distance_buckets:
        return None
    encodes = not h.causal or layer < h.n_encoder
    own, first = (f"blk.{i}.attn_rel_b.weight" for i in (layer, 0 if encodes else h.n_encoder))
    name = own if source.has(own) else first
    source.check_shape(name, (h.n_heads[layer], h.distance_buckets))
    biases = source.floats(name)
    if biases is None:
        raise ModelError(f"tensor {name} is missing")
    found = buckets(np.arange(-DISTANCE, DISTANCE + 1), h.distance_buckets, both_ways=encodes)
    return source.upload(np.ascontiguousarray(biases.reshape(h.distance_buckets, -1)[found].T))


def buckets(distances: npt.NDArray[np.int64], n: int, *, both_ways: bool) -> npt.NDArray[np.int64]:
    """The bucket of each distance, of ``n`` (T5, https://arxiv.org/abs/1910.10683, section 2.1):
    negative ones are of keys before the query.

    Short distances have a bucket each, longer ones up to DISTANCE share some by their logarithm,
    all that are longer the last. Where tokens see those after them, these have half of them.
    """
    n_side = n // 2 if both_ways else n
    far = np.abs(distances) if both_ways else np.maximum(-distances, 0)
    n_exact = n_side // 2
    logarithms = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(n_exact))
    shared = n_exact + logarithms * (n_side - n_exact) / np.log(DISTANCE / n_exact)
    sides = np.where(distances > 0, n_side, 0) if both_ways else 0
    return sides + np.where(far < n_exact, far, np.minimum(shared.astype(np.int64), n_side - 1))
