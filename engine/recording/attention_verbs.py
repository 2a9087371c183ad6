"""Verbs of attention: rotation and the way to the KV cache, attending, matrices of single heads."""

from __future__ import annotations

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from gguf_serve.engine.recording.rows import Emission, Rows
from gguf_serve.engine.recording.step import Context
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.engine.recording.verbs import Verbs
from gguf_serve.kernels.attention import attention as attn
from gguf_serve.kernels.attention.attention import AttentionInputs, Mask
from gguf_serve.kernels.attention.kv import LayerKV
from gguf_serve.kernels.attention.rope import QKNorm, QKVRows, RopeStyle, Temperature, rope_kv
from gguf_serve.kernels.matrix.matmul import RowGroups, matmul
from gguf_serve.kernels.opencl.tape import TOKENS, Per
from gguf_serve.kernels.opencl.tensor import Tensor, upload
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.quantization.packing import BLOCK
from gguf_serve.kernels.rows.norm import COPY, norm

TILES = (1, 8, 32)  # tokens of one head that go through its matrix together


class Cache(Struct, frozen=True):
    """A layer's pages of K and V: where tokens' go (``slot_mapping``), where attention finds them
    (``paging``), and cos and sin of the tokens' positions, None: heads are not rotated."""

    pages: LayerKV
    slot_mapping: Tensor
    paging: AttentionInputs
    table: Tensor | None
    n_tiles: int = 0  # of the paging, where it is known

    @classmethod
    def of_layer(cls, context: Context, layer: int) -> Cache:
        """That of a layer, with a window or not; the pages may be an earlier layer's."""
        h, pages = context.h, context.kv[context.h.kv_layers[layer]]
        slot_mapping, paging = context.inputs.paging(h.windowed[layer])
        table = context.rope_tables[h.rope_as_windowed[layer]] if h.rope[layer] else None
        return cls(pages, slot_mapping, paging, table)


class Rotation(Struct, frozen=True):
    """What is done to heads before they are used: clamps, norms, RoPE, a factor."""

    style: RopeStyle
    scale: float = 1.0  # of Q
    norm: QKNorm | None = None
    clamp: float = 0.0
    temperature: Temperature | None = field(default=None)


class AttentionVerbs(Verbs):
    """Attention over pages of K and V, and the plumbing of heads."""

    def rope(
        self,
        q: Rows,
        k: Rows | None,
        v: Rows | None,
        n_heads: int,
        cache: Cache,
        rotation: Rotation,
    ) -> None:
        """Rotate Q in place, and K on its way with V to the cache (kernels/attention/rope.py),
        unless they are there from an earlier layer."""
        stored = k is not None and v is not None

        def run(e: Emission) -> None:
            rows = QKVRows(e.floats(q), e.floats(k or q), e.floats(v or q))
            if k is not None and v is not None:
                rows = replace(rows, k_at=k.at, v_at=v.at)
            rope_kv(
                e.tape, rows, n_heads, cache.pages, cache.table, cache.slot_mapping,
                style=rotation.style, scale=rotation.scale, norm=rotation.norm,
                clamp=rotation.clamp, temperature=rotation.temperature, stored=stored,
            )  # fmt: skip

        assert q.at == 0, "Q comes first in its rows"
        reads = [rows for rows in (q, k, v) if rows is not None]
        self.launch(run, reads=reads, writes=[q], mixes=stored)

    def store(self, k: Rows, v: Rows, cache: Cache, rotation: Rotation) -> None:
        """K and V of an encoder's output, or a target's states, to the cache, for later steps."""
        self.rope(k, k, v, 0, cache, rotation)
        self.stored.append(k)

    def attend(
        self, q: Rows, n_heads: int, cache: Cache, mask: Mask, *, selected: Rows | None = None,
        keys: Rows | None = None,
    ) -> Rows:  # fmt: skip
        """softmax(q K) V over the keys that the mask allows and that are ``selected`` (bits),
        heads side by side. ``keys``: what was rotated on its way to the cache, if not with q."""
        c, shape = self.surroundings, cache.pages.shape
        head_v, most = shape.head_v, c.queries(n_heads, shape.n_kv)
        out = self.rows(n_heads * head_v, n=q.n)
        if not attn.fuses_quantization(c.device, head_v, plain=c.plain is not None):
            out.value.floats = True  # to be made integers of

        def run(e: Emission) -> None:
            mode, bits = e.step.mode.attention, None if selected is None else e.floats(selected)
            attn.attention(
                e.tape, e.floats(q), n_heads, cache.pages, cache.paging, e.operand(out),
                replace(mask, selected=bits),
                queries=1 if mode == "single" else most,
                split=c.split if mode == "split" else None, plain=c.plain,
            )  # fmt: skip

        reads = [rows for rows in (q, selected, keys) if rows is not None]
        self.launch(
            run, reads=reads, writes=[out], writes_forms=True, mixes=True, n_tiles=cache.n_tiles
        )  # fmt: skip
        return out

    def per_head(self, x: Rows, layer: Linear, *, into: Rows | None = None) -> Rows:
        """Each head's row times its own matrix; ``into``: columns of as many rows, else new
        ones."""
        n, x = x.heads, self._heads_read(x)
        out = into or self.rows(n * layer.matrix.n_rows).by_head(n)
        rows = {tile: self._rows_of_heads(n, tile) for tile in TILES}
        assert out.at == 0

        def run(e: Emission) -> None:
            matmul(
                e.tape, layer.matrix, e.operand(x), e.floats(out), e.counts,
                tile=e.tile, experts=rows[e.tile],
            )  # fmt: skip

        self.launch(run, operands=[(x, layer)], writes=[out])
        return out.whole()

    def _rows_of_heads(self, n: int, tile: int) -> RowGroups:
        made = self.context.workspace.constant
        return made(("rows of heads", n, tile), lambda: head_rows(self.context, n, tile))

    def _heads_read(self, x: Rows) -> Rows:
        """Heads' rows that a matrix can read: columns of them, or blocks that go over the end of
        a head, are copied."""
        if x.width * x.heads == x.value.width and x.width % BLOCK == 0:
            return x
        out = self.rows(x.width, x.heads)
        self.copy(x, out)
        return out

    def copy(self, x: Rows, into: Rows) -> None:
        """Columns of rows to those of others, head by head."""

        def run(e: Emission) -> None:
            held = e.operand(into)
            if into.heads > 1 or into.width != into.row:
                held = Activations(x.width, e.floats(into))
            norm(
                e.tape, e.floats(x), COPY, held, offset=x.at, out_offset=into.at,
                times=x.heads,
            )  # fmt: skip

        self.launch(run, reads=[x], writes=[into], writes_forms=into.heads == 1)

    def copied_columns(self, x: Rows) -> Rows:
        """Columns of rows, or rows that are given, as rows of their own."""
        out = self.rows(x.width)
        self.copy(x, out)
        return out

    def repeat(self, x: Rows, into: Rows) -> None:
        """Columns of a token's row to those of each of its heads."""
        device, n = self.context.device, self.context.workspace.n_tokens
        token_of = self.context.workspace.constant(
            ("token of a head", into.heads),
            lambda: upload(device, np.repeat(np.arange(n, dtype=np.int32), into.heads)),
        )

        def run(e: Emission) -> None:
            norm(
                e.tape, e.floats(x), COPY, Activations(x.width, e.floats(into)), offset=x.at,
                out_offset=into.at, rows=token_of, times=into.heads,
            )  # fmt: skip

        self.launch(run, reads=[x], writes=[into])


def head_rows(context: Context, n_heads: int, tile: int) -> RowGroups:
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
    return RowGroups(
        upload(context.device, tiles.astype(np.int32)), listed, listed,
        Per(TOKENS, tile, n_heads), n_heads,
    )  # fmt: skip
