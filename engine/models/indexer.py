"""The indexer of sparse attention (DeepSeek-V3.2): small heads of its own find the keys that a
query attends to, once the context is longer than their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.models.arch import Hyperparameters
from engine.models.attention import project
from engine.models.step import Context, Step
from engine.tensors import Linear, TensorSource
from kernels.compress import key_shape
from kernels.indexer import index_scores, select_keys
from kernels.kv import PAGE, KVShape, LayerKV
from kernels.matmul import Activations
from kernels.norm import NormWeights, norm
from kernels.rope import QKVRows, RopeStyle, rope_kv
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True)
class IndexerWeights:
    """``q`` reads the query's latent vector, ``k`` and ``proj`` what the layer reads."""

    q: Linear
    k: Linear
    k_norm: NormWeights
    proj: Linear


def load_indexer(source: TensorSource, h: Hyperparameters, layer: int) -> IndexerWeights | None:
    """The layer's indexer; None if it has none, and uses what one before it has found."""
    b = f"blk.{layer}.indexer."
    if not h.index_k or not source.has(f"{b}attn_q_b.weight"):
        return None
    q, proj = source.linear(f"{b}attn_q_b"), source.linear(f"{b}proj", h.n_embd)
    source.check_rows(f"{b}attn_q_b.weight", h.index_heads * h.index_head)
    source.check_rows(f"{b}proj.weight", h.index_heads)
    source.check_rows(f"{b}attn_k.weight", h.index_head)
    weights = NormWeights(
        source.vector(f"{b}k_norm.weight"), h.index_eps, source.vector(f"{b}k_norm.bias"),
        layer=True,
    )  # fmt: skip
    return IndexerWeights(q, source.linear(f"{b}attn_k", h.n_embd), weights, proj)


def index_shapes(h: Hyperparameters, n_ctx: int) -> list[KVShape]:
    """What each layer keeps in the KV cache for its indexer: nothing where it will never have
    to choose."""
    if h.compress_ratios:
        ratios = (
            ratio if ratio and has and 0 < h.index_k < n_ctx // ratio else 0
            for has, ratio in zip(h.indexed, h.compress_ratios, strict=True)
        )  # fmt: skip
        return [key_shape(h.index_head, ratio) for ratio in ratios]
    needed = 0 < h.index_k < n_ctx
    return [KVShape(int(needed and has), h.index_head, 0) for has in h.indexed]


def selection(context: Context) -> Tensor | None:
    """The chosen keys of a step's tokens, which layers with and without an indexer read: bits,
    int32 [tokens, words]. None where all keys are used."""
    n_keys = context.inputs.attention.tables.shape[1] * PAGE
    if not any(keys.shape.n_kv for keys in context.index_pages):
        return None
    return context.workspace.tensor(
        "selected keys", context.workspace.n_tokens, n_keys // 32, dtype="int32"
    )


class Indexer:
    """A layer's indexer with its memory."""

    def __init__(
        self, weights: IndexerWeights, context: Context, keys: LayerKV, table: Tensor | None
    ) -> None:
        h, workspace = context.h, context.workspace
        self._w, self._c, self._keys, self._table = weights, context, keys, table
        self._q = workspace.rows("index q", h.index_heads * h.index_head)
        self._k = workspace.rows("index k", h.index_head)
        self._weights = workspace.rows("index weights", h.index_heads)
        n_keys = context.inputs.attention.tables.shape[1] * PAGE
        self._scores = workspace.rows("index scores", n_keys)

    @property
    def readers(self) -> Sequence[Linear]:
        """The matrices that read what the layer reads."""
        return (self._w.k, self._w.proj)

    def record(self, step: Step, x: Activations, latent: Activations, selected: Tensor) -> None:
        """Write the tokens' index keys, and which keys they attend to into ``selected``."""
        w, h, tape, inputs = self._w, self._c.h, step.tape, self._c.inputs
        for linear, read, out in (
            (w.q, latent, self._q), (w.k, x, self._k), (w.proj, x, self._weights),
        ):  # fmt: skip
            project(step, self._c, [linear], read, out)
        norm(tape, self._k, w.k_norm, Activations(h.index_head, self._k))
        begin = h.index_head - h.n_rot if h.arch.index_rope_last else 0
        rope_kv(
            tape, QKVRows(self._q, self._k, self._k), h.index_heads, self._keys, self._table,
            inputs.slots, style=RopeStyle(h.n_rot, h.arch.index_neox, begin), scale=1.0,
        )  # fmt: skip
        index_scores(
            tape, self._q, self._weights, self._keys, inputs.attention, h.index_k, self._scores
        )
        select_keys(tape, self._scores, inputs.attention, h.index_k, selected)
