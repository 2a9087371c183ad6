"""Multi-head latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434).

K and V are made from a latent vector and one rotated key that all heads share. Where the file
has the matrices of each head apart (``attn_k_b``, ``attn_v_b``), the query is brought into the
latent space instead: the cache then holds the latent vector and the rotated key only, as one
KV head. Where it has them as one (``attn_kv_b``), K and V of every head go to the cache.
"""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.layers.attention.indexer import (
    SELECTION,
    IndexerWeights,
    index,
    load_indexer,
)
from gguf_serve.engine.layers.feed_forward.experts import more_rows
from gguf_serve.engine.recording.attention_verbs import Cache, Rotation
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.attention.attention import Mask
from gguf_serve.kernels.attention.rope import RopeStyle, Temperature
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.packing import ROWS
from gguf_serve.kernels.rows.norm import COPY, NormWeights


class MLAWeights(Struct, frozen=True):
    """``k_up`` and ``v_up`` have a matrix per head; or ``kv_up`` one for all."""

    q_down: Linear | None
    q_norm: NormWeights | None
    q_up: Linear
    kv_down: Linear
    kv_norm: NormWeights
    k_pe_norm: NormWeights | None  # of the rotated key
    k_up: Linear | None
    v_up: Linear | None
    kv_up: Linear | None
    gate: tuple[Linear, ...]
    sinks: Tensor | None
    indexer: IndexerWeights | None
    output: Linear

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return mla(g, x, self, layer)


def load_mla(source: TensorSource, h: Hyperparameters, layer: int) -> MLAWeights:
    """Layer ``layer``'s latent attention; ModelError for tensors that are missing."""
    b = f"blk.{layer}."
    compressed = source.has(f"{b}attn_q_a.weight")

    def heads(name: str) -> Linear | None:
        if not source.has(f"{b}{name}.weight"):
            return None
        parts = (
            source.experts(f"{b}{name}") if h.n_heads[layer] > 1 else [source.part(f"{b}{name}")]
        )
        n_more = -parts[0].n_rows % ROWS
        return source.expert_linear(
            [more_rows(part, n_more) for part in parts] if n_more else parts
        )

    def weights(name: str) -> NormWeights | None:
        vector = source.vector(f"{b}{name}.weight")
        return None if vector is None else NormWeights(vector, h.eps)

    kv_norm = weights("attn_kv_a_norm")
    gate = source.optional_linear(f"{b}attn_gate")
    return MLAWeights(
        q_down=source.linear(f"{b}attn_q_a") if compressed else None,
        q_norm=weights("attn_q_a_norm"),
        q_up=source.linear(f"{b}attn_q_b" if compressed else f"{b}attn_q"),
        kv_down=source.linear(f"{b}attn_kv_a_mqa"),
        kv_norm=kv_norm or COPY,
        k_pe_norm=weights("attn_k_norm"),
        k_up=heads("attn_k_b"),
        v_up=heads("attn_v_b"),
        kv_up=source.optional_linear(f"{b}attn_kv_b"),
        gate=() if gate is None else (gate,),
        sinks=source.vector(f"{b}attn_sinks.weight"),
        indexer=load_indexer(source, h, layer) if compressed else None,
        output=source.linear(f"{b}attn_output"),
    )


def mla(g: Graph, x: Rows, w: MLAWeights, layer: int) -> Rows:
    """W (softmax(q K) V), with K and V made of a latent vector and a rotated key."""
    h, n = g.h, g.h.n_heads[layer]
    latent = w.kv_norm.weight.shape[0] if w.kv_norm.weight else 0
    rot = w.kv_down.matrix.n_rows - latent
    cache = Cache.of_layer(g.context, layer)
    low = x if w.q_down is None else g.norm(g.linear(x, w.q_down), w.q_norm or COPY)
    q = g.linear(low, w.q_up)
    head = q.width // n
    index(g, x, low, w.indexer, layer, cache.table)
    c, k_pe = g.linear(x, w.kv_down).split(latent, rot)
    if w.k_pe_norm is not None:
        g.normalize(k_pe, w.k_pe_norm)
    if w.kv_up is not None:
        k, v = _expand(g, c, k_pe, w, w.kv_up, n, head - rot)
    else:
        q = _absorb(g, q.by_head(n), c, w, rot)
        k = v = c.whole()
    temperature = None
    if h.temperature is not None:
        temperature = Temperature(g.context.inputs.attention.positions, *h.temperature)
    style = RopeStyle(rot, h.neox, cache.pages.shape.head - rot)
    scale = h.rope_scaling.score_scale * head**-0.5
    g.rope(q, k, v, n, cache, Rotation(style, scale, temperature=temperature))
    selected = None if h.windowed[layer] else g.kept.get(SELECTION)
    window, together = h.window if h.windowed[layer] else 0, g.context.inputs.together
    mask = Mask(window, sinks=w.sinks, together=together)
    y = g.attend(q, n, cache, mask, selected=selected)
    if w.v_up is not None:
        y = _values(g, y, w, w.v_up, n)
    if w.gate:
        y = g.activate(g.linear(x, w.gate), h.arch.attention_gate, times=y)
    return g.output(y, w.output)


def _values(g: Graph, y: Rows, w: MLAWeights, v_up: Linear, n: int) -> Rows:
    """Every head's values from the latent space, without the rows that fill its matrix up."""
    size = w.output.matrix.n_cols // n
    whole = g.per_head(y.by_head(n), v_up)
    if whole.width == n * size:
        return whole
    values = g.rows(n * size)
    g.copy(whole.by_head(n).split(size)[0], values.by_head(n))
    return values


def _absorb(g: Graph, q: Rows, c: Rows, w: MLAWeights, rot: int) -> Rows:
    """The query in the latent space: the latent vector is K and V of one head."""
    assert w.k_up is not None
    if not w.kv_norm.is_copy:
        g.normalize(c, w.kv_norm)
    q_nope, q_pe = q.split(q.width - rot, rot)
    absorbed = g.rows(q.heads * (c.width + rot))
    into_latent, into_pe = absorbed.by_head(q.heads).split(c.width, rot)
    g.per_head(q_nope, w.k_up, into=into_latent)
    if rot:
        g.copy(q_pe, into_pe)
    return absorbed


def _expand(
    g: Graph, c: Rows, k_pe: Rows, w: MLAWeights, kv_up: Linear, n: int, nope: int
) -> tuple[Rows, Rows]:
    """K and V of every head."""
    made = g.linear(g.norm(c, w.kv_norm), kv_up).by_head(n)
    k_nope, of_v = made.split(nope, made.width - nope)
    k, v = g.rows(n * (nope + k_pe.width)), g.rows(n * of_v.width)
    into_nope, into_pe = k.by_head(n).split(nope, k_pe.width)
    if nope:
        g.copy(k_nope, into_nope)
    g.copy(of_v, v.by_head(n))
    g.repeat(k_pe, into_pe)
    return k, v
