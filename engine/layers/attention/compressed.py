"""Attention over a window and over compressed keys (DeepSeek-V4).

One head of keys, which are their own values, serves all heads of queries. A query sees its window's
keys and, in layers with a ratio, one more key for every so many tokens (see
kernels/attention/compress.cl): all of them, or the best that an indexer finds. What comes out is
rotated back by the query's position and goes through two matrices, of which the first is a group of
heads' own."""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.layers.attention.attention import ENCODED
from gguf_serve.engine.recording.attention_verbs import Cache, Rotation
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.attention.compress import Compression, KeyFinish, key_shape
from gguf_serve.kernels.attention.indexer import Blocks
from gguf_serve.kernels.attention.joint import Ending, Keys
from gguf_serve.kernels.attention.kv import PAGE, KVShape, LayerKV
from gguf_serve.kernels.attention.rope import QKNorm, RopeStyle
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.norm import NormWeights


class CompressorWeights(Struct, frozen=True):
    """``inputs`` yields a token's values and logits side by side, ``norm`` is of the keys."""

    inputs: tuple[Linear, ...]
    compression: Compression
    norm: Tensor


class CompressedIndexerWeights(Struct, frozen=True):
    """``q`` reads the query's latent vector, ``proj`` what the layer reads."""

    q: Linear
    proj: Linear
    compressor: CompressorWeights


class CompressedWeights(Struct, frozen=True):
    """``output_down`` has a matrix for each of ``n_groups`` groups of heads."""

    q_down: Linear
    q_norm: NormWeights
    q_up: Linear
    kv: Linear
    kv_norm: Tensor
    sinks: Tensor
    compressor: CompressorWeights | None
    indexer: CompressedIndexerWeights | None
    output_down: Linear
    n_groups: int
    output: Linear
    of_states: bool = False  # K is made of a target's states, but that of the block it drafts

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return compressed(g, x, self, layer)


def load_compressed(source: TensorSource, h: Hyperparameters, layer: int) -> CompressedWeights:
    """Layer ``layer``'s attention; ModelError for tensors that are missing or do not fit."""
    b, n = f"blk.{layer}.", h.n_heads[layer]
    if h.n_kv[layer] != 1 or not h.compress_ratios:
        raise ModelError(
            f"{b}attn_kv with {h.n_kv[layer]} KV heads, ratios {h.compress_ratios}: expected one "
            "head and a ratio for each layer"
        )
    q_up = source.linear(f"{b}attn_q_b")
    source.check_rows(f"{b}attn_q_b.weight", n * h.head)
    source.check_rows(f"{b}attn_kv.weight", h.head)
    ratio = h.compress_ratios[layer]
    output_down, n_groups = _load_output_down(source, f"{b}attn_output_a", n * h.head)
    return CompressedWeights(
        q_down=source.linear(f"{b}attn_q_a", h.n_embd),
        q_norm=NormWeights(_vector(source, f"{b}attn_q_a_norm", q_up.matrix.n_cols), h.eps),
        q_up=q_up,
        kv=source.linear(f"{b}attn_kv", h.n_embd),
        kv_norm=_vector(source, f"{b}attn_kv_a_norm", h.head),
        sinks=_vector(source, f"{b}attn_sinks", n),
        compressor=_load_compressor(source, h, f"{b}attn_compressor", h.head, ratio),
        indexer=_load_indexer(source, h, layer),
        output_down=output_down,
        n_groups=n_groups,
        output=source.linear(f"{b}attn_output_b", n_groups * output_down.matrix.n_rows),
        of_states="keys_of_states" in h.arch.quirks,
    )


def _vector(source: TensorSource, name: str, n: int) -> Tensor:
    source.check_shape(f"{name}.weight", (n,))
    vector = source.vector(f"{name}.weight")
    assert vector is not None
    return vector


def _load_output_down(source: TensorSource, name: str, width: int) -> tuple[Linear, int]:
    """The matrices of groups of heads, and their number; they lie one below the other."""
    whole = source.part(name)
    n_groups, n = divmod(width, whole.raw.n_cols)
    if n or whole.n_rows % n_groups:
        raise ModelError(f"tensor {name}.weight of {whole.n_rows} rows for heads of {width} values")
    rows = whole.n_rows // n_groups
    parts = [whole.rows(i * rows, (i + 1) * rows) for i in range(n_groups)]
    return source.expert_linear(parts), n_groups


def _load_compressor(
    source: TensorSource, h: Hyperparameters, name: str, width: int, ratio: int
) -> CompressorWeights | None:
    if not ratio:
        return None
    parts = [source.part(f"{name}_{x}", h.n_embd) for x in ("kv", "gate")]
    columns = parts[0].n_rows
    if columns not in (width, 2 * width) or width % 16:
        raise ModelError(
            f"tensor {name}_kv.weight has {columns} rows for keys of {width}, expected "
            f"{width} or {2 * width}, multiples of 16"
        )
    source.check_rows(f"{name}_gate.weight", columns)
    source.check_shape(f"{name}_ape.weight", (columns, ratio))
    biases = source.table(f"{name}_ape.weight")
    assert biases is not None
    return CompressorWeights(
        source.stacked(parts), Compression(ratio, width, biases),
        _vector(source, f"{name}_norm", width),
    )  # fmt: skip


def _load_indexer(
    source: TensorSource, h: Hyperparameters, layer: int
) -> CompressedIndexerWeights | None:
    b, s, ratio = f"blk.{layer}.", h.sparsity, h.compress_ratios[layer]
    if s is None or not s.layers[layer]:
        return None
    compressor = _load_compressor(source, h, f"{b}indexer_compressor", s.head, ratio)
    if compressor is None:
        return None
    source.check_rows(f"{b}indexer.attn_q_b.weight", s.n_heads * s.head)
    source.check_rows(f"{b}indexer.proj.weight", s.n_heads)
    return CompressedIndexerWeights(
        source.linear(f"{b}indexer.attn_q_b"), source.linear(f"{b}indexer.proj", h.n_embd),
        compressor,
    )  # fmt: skip


def compressed_shapes(h: Hyperparameters) -> list[KVShape]:
    """What each layer keeps of compressed keys; empty if no layer has any."""
    return [key_shape(h.head, ratio) for ratio in h.compress_ratios]


def compressed(g: Graph, x: Rows, w: CompressedWeights, layer: int) -> Rows:
    """Attention to a window's keys and to compressed ones together, through a matrix for each
    group of heads and one for all."""
    h, n, c = g.h, g.h.n_heads[layer], g.context
    kv, selected = c.kv[layer], None
    slot_mapping, window = c.inputs.paging(h.windowed[layer])
    table = c.rope_tables[h.rope_as_windowed[layer]]
    style = RopeStyle(h.n_rot, h.neox, h.head - h.n_rot)
    low = g.norm(g.linear(x, w.q_down), w.q_norm)
    q, k = g.linear(low, w.q_up), g.linear(x, w.kv)
    rotation = Rotation(style, h.attention_scale, QKNorm(h.eps, k=w.kv_norm))
    cache = Cache(kv, slot_mapping, window, table)
    if w.of_states:
        states = g.linear(g.kept[ENCODED], w.kv)
        g.store(states, states, cache, rotation)
    g.rope(q, k, k, n, cache, rotation)
    seen = h.window if h.windowed[layer] else 0
    caches = [Keys(kv, window, window=seen, together=w.of_states)]
    if w.compressor is not None:
        keys = c.compressed_pages[layer]
        _compress(g, x, w.compressor, keys)
        caches.insert(0, Keys(
            keys, c.inputs.attention, w.compressor.compression.ratio
        ))  # fmt: skip
        selected = _select(g, x, low, w.indexer, layer)
    y = g.attend_jointly(q, n, caches, Ending(w.sinks, table), selected)
    return g.output(g.per_head(y.by_head(w.n_groups), w.output_down), w.output)


def _compress(g: Graph, x: Rows, w: CompressorWeights, keys: LayerKV) -> None:
    """Write the compressed keys that end in this step."""
    frequencies, magnitude = g.context.rope_frequencies[False], g.h.rope_scaling.magnitude
    finish = KeyFinish(w.norm, g.h.eps, frequencies, magnitude)
    g.compress(g.linear(x, w.inputs), w.compression, finish, keys)


def _select(
    g: Graph, x: Rows, latent: Rows, w: CompressedIndexerWeights | None, layer: int
) -> Rows | None:
    """Which compressed keys the tokens attend to; None: to all."""
    h, s, c = g.h, g.h.sparsity, g.context
    pages = c.index_pages[layer]
    if w is None or s is None or not pages.shape.n_kv:
        return None
    inputs, ratio = c.inputs.attention, w.compressor.compression.ratio
    n_words = -(-inputs.tables.shape[1] * PAGE // ratio // 32)
    selected = g.rows(n_words, dtype=np.int32)
    _compress(g, x, w.compressor, pages)
    q, weights = g.linear(latent, w.q), g.linear(x, w.proj)
    queries_only = replace(pages, shape=replace(pages.shape, n_kv=0))
    cache = Cache(queries_only, c.inputs.slot_mapping, inputs, c.rope_tables[False])
    style = RopeStyle(h.n_rot, h.neox, s.head - h.n_rot)
    g.rope(q, q, q, s.n_heads, cache, Rotation(style))
    scores = g.score_keys(q, weights, Keys(pages, inputs, ratio), s.blocks.chosen)
    g.select(scores, Blocks(ratio, s.blocks.chosen), selected, by_block=True)
    return selected
