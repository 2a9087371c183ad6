"""The indexer of sparse attention: small heads of its own find the keys that a query attends to,
once the context is longer than their number (sparse.py says which kinds there are)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import ModelError
from engine.models.arch import Hyperparameters
from engine.models.linear import linear
from engine.models.sparse import QUERIES, Sparsity
from engine.models.step import Context, Step
from engine.tensors import Linear, TensorSource
from kernels.compress import key_shape
from kernels.indexer import block_maxima, index_scores, select_keys
from kernels.kv import PAGE, KVShape, LayerKV
from kernels.matmul import Activations
from kernels.norm import NormWeights, norm
from kernels.rope import HeadNorm, QKVRows, RopeStyle, pool_keys, rope_kv
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True)
class IndexerWeights:
    """``q`` reads the query's latent vector where there is one; all else what the layer reads.

    Keys have ``k_norm``, or they and queries ``head_norm``. ``proj``: weights of the heads;
    None: ones, or each chooses for itself. ``gate`` and ``offsets``: what a block's key is
    pooled with; None: it is their mean.
    """

    q: Linear
    latent: bool  # whether q reads the latent vector
    k: Linear
    k_norm: NormWeights | None
    head_norm: HeadNorm | None
    proj: Linear | None
    gate: Linear | None
    offsets: Tensor | None  # float32 [block, head]


def load_indexer(source: TensorSource, h: Hyperparameters, layer: int) -> IndexerWeights | None:
    """The layer's indexer; None if it has none, and uses all keys or what one before it found."""
    s = h.sparsity
    if s is None or not s.layers[layer]:
        return None
    if s.by_head and s.n_heads != h.n_kv[layer]:
        raise ModelError(f"blk.{layer}: {s.n_heads} index heads for {h.n_kv[layer]} KV heads")
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
        head_norm=HeadNorm(s.eps, q_norm, k_norm) if by_heads else None,
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


def selection(context: Context, layer: int) -> Tensor | None:
    """The chosen keys of a step's tokens, which a layer with an indexer and those after it without
    one read: bits, int32 [tokens, words], or those of every KV head. None where all keys are
    used."""
    n_keys = context.inputs.attention.tables.shape[1] * PAGE
    s = context.h.sparsity
    if s is None or not s.chooses(n_keys) or not any(s.layers[: layer + 1]):
        return None
    rows = s.n_heads if s.by_head else 1
    return context.workspace.tensor(
        "selected keys", context.workspace.n_tokens, rows * n_keys // 32, dtype="int32"
    )


def build_indexer(
    weights: IndexerWeights | None, context: Context, layer: int, table: Tensor | None
) -> Indexer | None:
    """A layer's indexer; None if it has none, or never has to choose."""
    s, selected = context.h.sparsity, selection(context, layer)
    if weights is None or s is None or selected is None:
        return None
    return Indexer(weights, s, context, context.index_pages[layer], table, selected)


class Indexer:
    """A layer's indexer with its memory."""

    def __init__(
        self,
        weights: IndexerWeights,
        sparsity: Sparsity,
        context: Context,
        keys: LayerKV,
        table: Tensor | None,
        selected: Tensor,
    ) -> None:
        workspace = context.workspace
        self._w, self._s, self._c, self._keys = weights, sparsity, context, keys
        self._table, self.selected = table, selected
        self._q = workspace.rows("index q", sparsity.n_heads * sparsity.head)
        self._k = workspace.rows("index k", max(sparsity.head, keys.shape.head_v))
        self._weights = workspace.rows("index weights", sparsity.n_heads)
        n_keys = context.inputs.attention.tables.shape[1] * PAGE
        self._n_rows = sparsity.n_heads if sparsity.by_head else 1
        self._scores = workspace.rows(
            "index scores", self._n_rows * sparsity.blocks.n_scores(n_keys)
        )

    @property
    def readers(self) -> Sequence[Linear]:
        """The matrices that read what the layer reads."""
        w = self._w
        found = (None if w.latent else w.q, w.k, w.proj, w.gate)
        return [linear for linear in found if linear is not None]

    def record(self, step: Step, x: Activations, for_q: Activations) -> None:
        """Write the tokens' index keys, and which keys they attend to into ``selected``."""
        w, blocks, inputs = self._w, self._s.blocks, self._c.inputs.attention
        self._project(step, x, for_q)
        self._write_keys(step)
        if self._s.by_head:
            block_maxima(step.tape, self._q, self._keys, inputs, blocks, self._scores)
        else:
            weights = None if w.proj is None else self._weights
            index_scores(step.tape, self._q, weights, self._keys, inputs, blocks, self._scores)
        select_keys(step.tape, self._scores, inputs, blocks, self.selected, self._n_rows)

    def _project(self, step: Step, x: Activations, for_q: Activations) -> None:
        w, head = self._w, self._s.head
        linear(step, self._c, w.q, for_q, self._q)
        linear(step, self._c, w.k, x, self._k)
        if w.proj is not None:
            linear(step, self._c, w.proj, x, self._weights)
        if w.gate is not None:
            linear(step, self._c, w.gate, x, self._k, offset=head)
        if w.k_norm is not None:
            norm(step.tape, self._k, w.k_norm, Activations(head, self._k))

    def _write_keys(self, step: Step) -> None:
        """Norms of heads, RoPE, and the way to the pages."""
        h, s, slots, w = self._c.h, self._s, self._c.inputs.slots, self._w
        begin = s.head - h.n_rot if h.arch.index_rope_last else 0
        style = RopeStyle(h.n_rot, h.arch.index_neox, begin)
        rope_kv(
            step.tape, QKVRows(self._q, self._k, self._k), s.n_heads, self._keys, self._table,
            slots, style=style, scale=1.0, norm=w.head_norm,
        )  # fmt: skip
        if s.pooled:
            table = None if self._table is None else self._c.block_table
            pool_keys(
                step.tape, self._keys, table, slots, style=style, norm=w.head_norm,
                gates=w.offsets,
            )  # fmt: skip
