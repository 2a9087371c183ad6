"""Multi-head latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434).

K and V are made from a latent vector and one rotated key that all heads share. Where the file
has the matrices of each head apart (``attn_k_b``, ``attn_v_b``), the query is brought into the
latent space instead: the cache then holds the latent vector and the rotated key only, as one
KV head. Where it has them as one (``attn_kv_b``), K and V of every head go to the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.models.arch import Hyperparameters
from engine.models.attention import apply_gate, project
from engine.models.indexer import IndexerWeights, build_indexer, load_indexer, selection
from engine.models.linear import linear
from engine.models.step import Context, Step
from engine.tensors import Linear, TensorSource
from kernels import attention as attn
from kernels.attention import Mask
from kernels.kv import LayerKV
from kernels.matmul import Activations, ExpertRows, matmul
from kernels.norm import UNCHANGED, NormWeights, norm
from kernels.rope import QKVRows, RopeStyle, Temperature, rope_kv
from kernels.tape import TOKENS, Per
from kernels.tensor import Tensor, upload

TILES = (1, 8, 32)  # tokens of one head that go through its matrix together


@dataclass(frozen=True, slots=True)
class MLAWeights:
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

    def build(self, context: Context, layer: int, kv: LayerKV) -> MLA:
        return MLA(self, context, layer, kv)


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
        return source.expert_linear(parts)

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
        kv_norm=kv_norm or UNCHANGED,
        k_pe_norm=weights("attn_k_norm"),
        k_up=heads("attn_k_b"),
        v_up=heads("attn_v_b"),
        kv_up=source.optional_linear(f"{b}attn_kv_b"),
        gate=() if gate is None else (gate,),
        sinks=source.vector(f"{b}attn_sinks.weight"),
        indexer=load_indexer(source, h, layer) if compressed else None,
        output=source.linear(f"{b}attn_output"),
    )


class MLA:
    """Latent attention of one layer with the memory that it needs."""

    def __init__(self, weights: MLAWeights, context: Context, layer: int, kv: LayerKV) -> None:
        h, workspace = context.h, context.workspace
        self._w, self._c, self._kv = weights, context, kv
        self._n = n = h.n_heads[layer]
        self._latent = weights.kv_norm.weight.shape[0] if weights.kv_norm.weight else 0
        self._rot = weights.kv_down.matrix.n_rows - self._latent
        self._head = weights.q_up.matrix.n_rows // n
        self._nope = self._head - self._rot
        head, v = kv.shape.head, weights.output.matrix.n_cols // n
        self._q_low = None if weights.q_down is None else workspace.rows(
            "q latent", weights.q_down.matrix.n_rows
        )  # fmt: skip
        q_readers = [weights.q_up] + ([] if weights.indexer is None else [weights.indexer.q])
        self._q_low_normed = workspace.activations("q latent normed", q_readers)
        self._q_all = workspace.rows("q", n * self._head)
        self._latents = workspace.rows("kv latent", weights.kv_down.matrix.n_rows)
        self._q = self._q_all
        self._attended = self._values = workspace.rows("attended v", n * v)
        if weights.k_up is not None and weights.v_up is not None:
            self._q = workspace.rows("q absorbed", n * head)
            self._attended = workspace.rows("attended latent", n * self._latent)
            self._q_nope = workspace.activations("q nope", [weights.k_up], times=n)
            self._latent_out = workspace.activations("latent out", [weights.v_up], times=n)
            self._heads = {t: head_rows(context, n, t) for t in TILES}
        elif weights.kv_up is not None:
            self._normed = workspace.activations("kv latent normed", [weights.kv_up])
            self._kv_all = workspace.rows("kv", n * (self._nope + v))
            self._k, self._v = workspace.rows("k", n * head), workspace.rows("v", n * v)
            slots = np.repeat(np.arange(context.workspace.n_tokens, dtype=np.int32), n)
            self._token_of = upload(context.device, slots)
        self._out = workspace.activations("attended", [weights.output])
        self._gate = workspace.rows("gate", weights.gate[0].matrix.n_rows) if weights.gate else None
        self._table = context.rope_tables[h.windowed[layer]] if h.rope[layer] else None
        self._slots, self._paging = context.inputs.paging(h.windowed[layer])
        self._indexer = build_indexer(weights.indexer, context, layer, self._table)
        self._selected = None if h.windowed[layer] else selection(context, layer)
        self._mask = Mask(
            h.window if h.windowed[layer] else 0, sinks=weights.sinks,
            selected=self._selected, together=context.inputs.together,
        )  # fmt: skip
        self._scale = h.rope_scaling.score_scale * self._head**-0.5
        self._temperature = None if h.temperature is None else Temperature(
            context.inputs.attention.positions, *h.temperature
        )  # fmt: skip

    @property
    def readers(self) -> Sequence[Linear]:
        first = self._w.q_down or self._w.q_up
        indexer = () if self._indexer is None else self._indexer.readers
        return (first, self._w.kv_down, *self._w.gate, *indexer)

    def prepare(self, step: Step, stream: Tensor) -> None:
        pass

    def record(self, step: Step, x: Activations, out: Tensor, *, add: bool) -> None:
        self._make_query(step, x)
        if self._indexer is not None:
            self._indexer.record(step, x, self._q_low_normed)
        self._project(step, self._w.kv_down, x, self._latents)
        if self._w.k_pe_norm is not None:
            self._in_place(step, self._w.k_pe_norm, self._rot, self._latent)
        kv_up = self._w.kv_up
        self._attend(step, self._absorb(step) if kv_up is None else self._expand(step, kv_up))
        self._finish(step, x)
        scale = self._c.h.residual_scale
        linear(step, self._c, self._w.output, self._out, out, add=add, scale=scale)

    def _project(self, step: Step, weights: Linear, x: Activations, out: Tensor) -> None:
        project(step, self._c, [weights], x, out)

    def _in_place(self, step: Step, weights: NormWeights, n: int, at: int) -> None:
        """Normalize ``n`` values of the latent rows from ``at`` on."""
        here = Activations(n, self._latents)
        norm(step.tape, self._latents, weights, here, offset=at, out_offset=at)

    def _make_query(self, step: Step, x: Activations) -> None:
        if self._w.q_down is not None and self._q_low is not None:
            self._project(step, self._w.q_down, x, self._q_low)
            norm(step.tape, self._q_low, self._w.q_norm or UNCHANGED, self._q_low_normed)
            x = self._q_low_normed
        self._project(step, self._w.q_up, x, self._q_all)

    def _absorb(self, step: Step) -> QKVRows:
        """The query in the latent space; the latent vector is K and V of one head."""
        self._in_place(step, self._w.kv_norm, self._latent, 0)
        per_head = _by_head(self._q_all, self._n)
        query = _by_head(self._q, self._n)
        norm(step.tape, per_head, UNCHANGED, self._q_nope, times=self._n)
        self._through_heads(step, self._w.k_up, self._q_nope, query)
        if self._rot:
            self._copy(step, per_head, self._nope, query, self._latent, self._rot)
        return QKVRows(self._q, self._latents, self._latents)

    def _expand(self, step: Step, kv_up: Linear) -> QKVRows:
        """K and V of every head."""
        norm(step.tape, self._latents, self._w.kv_norm, self._normed)
        self._project(step, kv_up, self._normed, self._kv_all)
        made, k, v = (_by_head(t, self._n) for t in (self._kv_all, self._k, self._v))
        if self._nope:
            self._copy(step, made, 0, k, 0, self._nope)
        self._copy(step, made, self._nope, v, 0, v.shape[1])
        norm(
            step.tape, self._latents, UNCHANGED, Activations(self._rot, k), offset=self._latent,
            out_offset=self._nope, rows=self._token_of, times=self._n,
        )  # fmt: skip
        return QKVRows(self._q, self._k, self._v)

    def _copy(self, step: Step, x: Tensor, at: int, out: Tensor, out_at: int, n: int) -> None:
        """``n`` values of each head's row."""
        norm(
            step.tape, x, UNCHANGED, Activations(n, out), offset=at, out_offset=out_at,
            times=self._n,
        )  # fmt: skip

    def _attend(self, step: Step, rows: QKVRows) -> None:
        c, mode = self._c, step.mode.attention
        rope_kv(
            step.tape, rows, self._n, self._kv, self._table, self._slots,
            style=RopeStyle(self._rot, c.h.neox, self._kv.shape.head - self._rot),
            scale=self._scale, temperature=self._temperature,
        )  # fmt: skip
        attn.attention(
            step.tape, self._q, self._n, self._kv, self._paging,
            Activations(self._attended.shape[1], self._attended), self._mask,
            queries=1 if mode == "single" else c.tile_queries,
            split=c.split if mode == "split" else None, plain=c.plain,
        )  # fmt: skip

    def _finish(self, step: Step, x: Activations) -> None:
        """From what attention yields to the rows that the output matrix reads."""
        if self._w.v_up is not None:
            latent = _by_head(self._attended, self._n)
            norm(step.tape, latent, UNCHANGED, self._latent_out, times=self._n)
            values = _by_head(self._values, self._n)
            self._through_heads(step, self._w.v_up, self._latent_out, values)
        if self._gate is None:
            norm(step.tape, self._values, UNCHANGED, self._out)
            return
        project(step, self._c, self._w.gate, x, self._gate)
        apply_gate(step, self._gate, self._values, self._out, self._c.h.arch.attention_gate)

    def _through_heads(
        self, step: Step, weights: Linear | None, x: Activations, out: Tensor
    ) -> None:
        """Each head's rows times its own matrix."""
        if weights is None:
            raise ValueError("no matrices per head")
        matmul(
            step.tape, weights.matrix, x, out, self._c.inputs.counts, tile=step.tile,
            experts=self._heads[step.tile],
        )  # fmt: skip


def _by_head(rows: Tensor, n: int) -> Tensor:
    """Rows of n heads side by side as rows of one head."""
    return Tensor(rows.buffer, (rows.shape[0] * n, rows.shape[1] // n), rows.dtype)


def head_rows(context: Context, n_heads: int, tile: int) -> ExpertRows:
    """For matrices of heads in the place of experts: row t * n_heads + h goes through matrix h.

    Rows of tokens that a step does not have are computed too; nobody reads them.
    """
    n_tokens = context.workspace.n_tokens
    n_blocks = -(-n_tokens // tile)
    block, head = np.divmod(np.arange(n_blocks * n_heads), n_heads)
    counts = np.minimum(tile, n_tokens - block * tile)
    zeros = np.zeros_like(head)
    tiles = np.stack([head, np.arange(len(head)) * tile, counts, zeros], axis=1)
    tokens = block[:, None] * tile + np.arange(tile)
    rows = np.minimum(tokens, n_tokens - 1) * n_heads + head[:, None]
    listed = upload(context.device, rows.astype(np.int32).reshape(-1))
    return ExpertRows(
        upload(context.device, tiles.astype(np.int32)), listed, listed,
        Per(TOKENS, tile, n_heads), n_heads,
    )  # fmt: skip
