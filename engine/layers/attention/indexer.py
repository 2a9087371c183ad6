"""The indexer of sparse attention: small heads of its own find the keys that a query attends to,
once the context is longer than their number (sparse.py says which kinds there are)."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.architecture.sparse import QUERIES
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.recording.attention_verbs import Cache, Rotation
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.attention.compress import key_shape
from gguf_serve.kernels.attention.kv import PAGE, KVShape
from gguf_serve.kernels.attention.rope import QKNorm, RopeStyle
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.norm import NormWeights

SELECTION = "selection"  # the name of the chosen keys among what a layer keeps for later ones


class IndexerWeights(Struct, frozen=True):
    """``q`` reads the query's latent vector where there is one; all else what the layer reads.

    Keys have ``k_norm``, or they and queries ``head_norm``. ``proj``: weights of the heads;
    None: ones, or each chooses for itself. ``gate`` and ``offsets``: what a block's key is
    pooled with; None: it is their mean.
    """

    q: Linear
    latent: bool  # whether q reads the latent vector
    k: Linear
    k_norm: NormWeights | None
    head_norm: QKNorm | None
    proj: Linear | None
    gate: Linear | None
    offsets: Tensor | None  # float32 [block, head]


def load_indexer(source: TensorSource, h: Hyperparameters, layer: int) -> IndexerWeights | None:
    """The layer's indexer; None if it has none, and uses all keys or what one before it found."""
    s = h.sparsity
    if s is None or not s.layers[layer]:
        return None
    if s.by_head and s.n_heads != h.n_kv[layer]:
        raise ModelError(
            f"blk.{layer}: {s.n_heads} index heads for {h.n_kv[layer]} KV heads, expected as many"
        )
    b, (latent, direct) = f"blk.{layer}.", QUERIES
    names = (latent, "indexer.attn_k") if source.has(f"{b}{latent}.weight") else (
        direct, "indexer.k_proj"
    )  # fmt: skip
    q, k = (f"{b}{name}" for name in names)
    source.check_rows(f"{q}.weight", s.n_heads * s.head)
    source.check_rows(f"{k}.weight", s.head)
    q_norm, k_norm, k_bias = (
        source.vector(f"{b}indexer.{name}") for name in ("q_norm.weight", "k_norm.weight",
                                                         "k_norm.bias")
    )  # fmt: skip
    by_heads, gate = q_norm is not None, f"{b}indexer_compressor_gate"
    if source.has(f"{b}indexer.proj.weight"):
        source.check_rows(f"{b}indexer.proj.weight", s.n_heads)
    if source.has(f"{gate}.weight"):
        source.check_rows(f"{gate}.weight", s.head)
        source.check_shape(f"{b}indexer_compressor_ape.weight", (s.head, s.blocks.size))
    return IndexerWeights(
        q=source.linear(q),
        latent=names[0] == latent,
        k=source.linear(k, h.n_embd),
        k_norm=None if by_heads else NormWeights(k_norm, s.eps, k_bias, layer=True),
        head_norm=QKNorm(s.eps, q_norm, k_norm) if by_heads else None,
        proj=source.optional_linear(f"{b}indexer.proj"),
        gate=source.optional_linear(gate),
        offsets=source.table(f"{b}indexer_compressor_ape.weight"),
    )


def pooled_block(h: Hyperparameters) -> int:
    """How many tokens share a key of an indexer that RoPE turns; 1: none do."""
    s = h.sparsity
    return s.blocks.size if s is not None and s.pooled and any(h.rope) else 1


def index_shapes(h: Hyperparameters, n_ctx: int) -> list[KVShape]:
    """What each layer keeps in the KV cache for its indexer: nothing where it will never have
    to choose. Blocks that are pooled have one key; what it is made of is kept as values."""
    s = h.sparsity
    if s is None:
        return [KVShape(0, 0, 0)] * h.n_layers
    if h.compress_ratios:
        ratios = (
            ratio if has and s.blocks.chosen < n_ctx // max(ratio, 1) else 0
            for has, ratio in zip(s.layers, h.compress_ratios, strict=True)
        )
        return [key_shape(s.head, ratio) for ratio in ratios]
    needed = s.chooses(-(-n_ctx // PAGE) * PAGE)
    width = s.head * (1 + s.gated) if s.pooled else 0
    size = s.blocks.size if s.pooled else 1
    return [KVShape(int(needed and has), s.head, width, block=size) for has in s.layers]


def index(
    g: Graph, x: Rows, latent: Rows, w: IndexerWeights | None, layer: int, table: Tensor | None
) -> None:
    """Write the tokens' index keys, and keep which keys they attend to, bits of all heads or of
    each KV head: this layer and those after it without an indexer read them. Nothing where a layer
    has no indexer, or never has to choose. ``table``: of the positions' cos and sin."""
    s, h, n_keys = g.h.sparsity, g.h, g.context.inputs.attention.tables.shape[1] * PAGE
    if w is None or s is None or not s.chooses(n_keys):
        return
    cache = Cache(
        g.context.index_pages[layer],
        g.context.inputs.slot_mapping,
        g.context.inputs.attention,
        table,
    )
    q, all_of_k = g.linear(latent if w.latent else x, w.q), g.rows(
        max(s.head, cache.pages.shape.head_v)
    )  # fmt: skip
    k, gates = all_of_k.split(s.head, all_of_k.width - s.head)
    g.linear(x, w.k, into=k)
    weights = None if w.proj is None else g.linear(x, w.proj)
    if w.gate is not None:
        g.linear(x, w.gate, into=gates)
    if w.k_norm is not None:
        g.normalize(k, w.k_norm)
    style = RopeStyle(
        h.n_rot, "interleaved_indexer_rope" not in h.arch.quirks,
        s.head - h.n_rot if "indexer_rope_last" in h.arch.quirks else 0,
    )  # fmt: skip
    g.rope(q, all_of_k, all_of_k, s.n_heads, cache, Rotation(style, norm=w.head_norm))
    if s.pooled:
        g.pool_keys(cache, style, w.head_norm, w.offsets)
    by_head = s.n_heads if s.by_head else 0
    scores = g.index_scores(q, weights, cache.pages, s.blocks, by_head=by_head)
    selected = g.kept[SELECTION] = g.rows((by_head or 1) * n_keys // 32, dtype=np.int32)
    g.select(scores, s.blocks, selected, n_rows=by_head or 1)
