"""Attention over a window and over compressed keys (DeepSeek-V4).

One head of keys, which are their own values, serves all heads of queries. A query sees its
window's keys and, in layers with a ratio, one more key for every so many tokens (see
kernels/compress.cl): all of them, or the best that an indexer finds. What comes out is rotated
back by the query's position and goes through two matrices, of which the first is a group of heads'
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.errors import ModelError
from engine.models.arch import Hyperparameters
from engine.models.attention import project
from engine.models.linear import linear
from engine.models.mla import TILES, head_rows
from engine.models.sparse import Sparsity
from engine.models.step import Context, Step
from engine.tensors import Linear, TensorSource
from kernels.compress import Compression, KeyFinish, compress, key_shape, store_keys
from kernels.indexer import Blocks, select_keys
from kernels.joint import Ending, Keys, attend, score_keys
from kernels.kv import PAGE, KVShape, LayerKV
from kernels.matmul import Activations, matmul
from kernels.norm import UNCHANGED, NormWeights, norm
from kernels.rope import HeadNorm, QKVRows, RopeStyle, rope_kv
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True)
class CompressorWeights:
    """``inputs`` yields a token's values and logits side by side, ``norm`` is of the keys."""

    inputs: tuple[Linear, ...]
    compression: Compression
    norm: Tensor


@dataclass(frozen=True, slots=True)
class CompressedIndexerWeights:
    """``q`` reads the query's latent vector, ``proj`` what the layer reads."""

    q: Linear
    proj: Linear
    compressor: CompressorWeights


@dataclass(frozen=True, slots=True)
class CompressedWeights:
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

    def build(self, context: Context, layer: int, kv: LayerKV) -> Compressed:
        return Compressed(self, context, layer, kv)


def load_compressed(source: TensorSource, h: Hyperparameters, layer: int) -> CompressedWeights:
    """Layer ``layer``'s attention; ModelError for tensors that are missing or do not fit."""
    b, n = f"blk.{layer}.", h.n_heads[layer]
    if h.n_kv[layer] != 1 or not h.compress_ratios:
        raise ModelError(f"{b}attn_kv with {h.n_kv[layer]} KV heads, ratios {h.compress_ratios}")
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
        raise ModelError(f"tensor {name}_kv.weight has {columns} rows for keys of {width}")
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


class Compressor:
    """The way of tokens to keys, with the state that a sequence has between steps."""

    def __init__(self, weights: CompressorWeights, context: Context, keys: LayerKV) -> None:
        h, workspace, c = context.h, context.workspace, weights.compression
        self._w, self._c, self._keys = weights, context, keys
        self._rows = workspace.rows("compressor", c.row)
        self._pooled = workspace.rows("compressed", c.width)
        self._state = context.states.rows(context.device, *c.state_shape)
        self._finish = KeyFinish(
            weights.norm, h.eps, context.rope_frequencies[False], h.rope_scaling.magnitude
        )

    @property
    def readers(self) -> Sequence[Linear]:
        return self._w.inputs

    def record(self, step: Step, x: Activations) -> None:
        """Write the keys that end in this step."""
        inputs, c = self._c.inputs, self._w.compression
        project(step, self._c, self._w.inputs, x, self._rows)
        compress(step.tape, self._rows, c, inputs.sequences, self._state, self._pooled)
        store_keys(
            step.tape, self._pooled, c.ratio, self._finish, inputs.attention.positions,
            inputs.slots, self._keys,
        )  # fmt: skip


class CompressedIndexer:
    """Which compressed keys a token attends to."""

    def __init__(
        self,
        weights: CompressedIndexerWeights,
        sparsity: Sparsity,
        context: Context,
        keys: LayerKV,
    ) -> None:
        workspace, inputs = context.workspace, context.inputs.attention
        ratio = weights.compressor.compression.ratio
        self._w, self._s, self._c, self._layer = weights, sparsity, context, keys
        self._compressor = Compressor(weights.compressor, context, keys)
        self._keys = Keys(keys, inputs, ratio)
        self._q = workspace.rows("index q", sparsity.n_heads * sparsity.head)
        self._weights = workspace.rows("index weights", sparsity.n_heads)
        n_words = -(-inputs.tables.shape[1] * PAGE // ratio // 32)
        self._scores = workspace.rows("index scores", n_words * 32)
        self.selected = workspace.tensor(
            "selected keys", workspace.n_tokens, n_words, dtype=np.int32
        )

    @property
    def readers(self) -> Sequence[Linear]:
        return (self._w.proj, *self._compressor.readers)

    def record(self, step: Step, x: Activations, latent: Activations) -> None:
        h, s, tape, inputs = self._c.h, self._s, step.tape, self._c.inputs
        blocks = Blocks(self._keys.ratio, s.blocks.chosen)
        self._compressor.record(step, x)
        project(step, self._c, [self._w.q], latent, self._q)
        project(step, self._c, [self._w.proj], x, self._weights)
        queries_only = replace(self._layer, shape=replace(self._layer.shape, n_kv=0))
        rope_kv(
            tape, QKVRows(self._q, self._q, self._q), s.n_heads, queries_only,
            self._c.rope_tables[False], inputs.slots,
            style=RopeStyle(h.n_rot, h.neox, s.head - h.n_rot), scale=1.0,
        )  # fmt: skip
        score_keys(tape, self._q, self._weights, self._keys, blocks.chosen, self._scores)
        select_keys(tape, self._scores, inputs.attention, blocks, self.selected, by_block=True)


class Compressed:
    """Such attention of one layer with the memory that it needs."""

    def __init__(
        self, weights: CompressedWeights, context: Context, layer: int, kv: LayerKV
    ) -> None:
        h, workspace = context.h, context.workspace
        self._w, self._c, self._kv = weights, context, kv
        self._n = n = h.n_heads[layer]
        self._q_low = workspace.rows("q latent", weights.q_down.matrix.n_rows)
        self._q = workspace.rows("q", n * h.head)
        self._latent = workspace.rows("kv latent", h.head)
        self._attended = workspace.rows("attended", n * h.head)
        self._partial = workspace.rows("attended so far", 2 * n)
        self._down = workspace.rows("output latent", weights.output.matrix.n_cols)
        self._down_read = workspace.activations("output latent read", [weights.output])
        self._groups = {t: head_rows(context, weights.n_groups, t) for t in TILES}
        self._by_group = workspace.activations(
            "attended by group", [weights.output_down], times=weights.n_groups
        )
        rope = h.rope_as_windowed[layer]
        self._table = context.rope_tables[rope]
        self._slots, window = context.inputs.paging(h.windowed[layer])
        self._compressor = None if weights.compressor is None else Compressor(
            weights.compressor, context, context.compressed_pages[layer]
        )  # fmt: skip
        index_keys = context.index_pages[layer]
        self._indexer = None
        if weights.indexer is not None and h.sparsity is not None and index_keys.shape.n_kv:
            self._indexer = CompressedIndexer(weights.indexer, h.sparsity, context, index_keys)
        self._caches = [Keys(kv, window, window=h.window if h.windowed[layer] else 0)]
        if weights.compressor is not None:
            self._caches.insert(0, Keys(
                context.compressed_pages[layer], context.inputs.attention,
                weights.compressor.compression.ratio,
                selected=None if self._indexer is None else self._indexer.selected,
            ))  # fmt: skip
        q_readers = [weights.q_up] + ([] if weights.indexer is None else [weights.indexer.q])
        self._q_low_normed = workspace.activations("q latent normed", q_readers)

    @property
    def readers(self) -> Sequence[Linear]:
        parts = [part for part in (self._compressor, self._indexer) if part is not None]
        return (self._w.q_down, self._w.kv, *(r for part in parts for r in part.readers))

    def prepare(self, step: Step, stream: Tensor) -> None:
        pass

    def record(self, step: Step, x: Activations, out: Tensor, *, add: bool) -> None:
        tape, c, w, h = step.tape, self._c, self._w, self._c.h
        project(step, c, [w.q_down], x, self._q_low)
        norm(tape, self._q_low, w.q_norm, self._q_low_normed)
        project(step, c, [w.q_up], self._q_low_normed, self._q)
        project(step, c, [w.kv], x, self._latent)
        rope_kv(
            tape, QKVRows(self._q, self._latent, self._latent), self._n, self._kv, self._table,
            self._slots, style=RopeStyle(h.n_rot, h.neox, h.head - h.n_rot),
            scale=h.attention_scale, norm=HeadNorm(h.eps, k=w.kv_norm),
        )  # fmt: skip
        if self._compressor is not None:
            self._compressor.record(step, x)
        if self._indexer is not None:
            self._indexer.record(step, x, self._q_low_normed)
        attend(
            tape, self._q, self._n, self._caches, Ending(w.sinks, self._table), self._attended,
            self._partial,
        )  # fmt: skip
        self._leave(step, out, add=add)

    def _leave(self, step: Step, out: Tensor, *, add: bool) -> None:
        """Through each group's matrix, then the one for all."""
        w, n, rows = self._w, self._w.n_groups, self._attended
        attended, down = (
            Tensor(t.buffer, (t.shape[0] * n, t.shape[1] // n), t.dtype) for t in (rows, self._down)
        )
        norm(step.tape, attended, UNCHANGED, self._by_group, times=n)
        matmul(
            step.tape, w.output_down.matrix, self._by_group, down, self._c.inputs.counts,
            tile=step.tile, experts=self._groups[step.tile],
        )  # fmt: skip
        norm(step.tape, self._down, UNCHANGED, self._down_read)
        scale = self._c.h.residual_scale
        linear(step, self._c, w.output, self._down_read, out, add=add, scale=scale)
