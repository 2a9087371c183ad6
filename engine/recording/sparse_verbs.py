"""Verbs of sparse attention: keys made of several tokens, and which keys a query attends to."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from gguf_serve.engine.recording.attention_verbs import Cache
from gguf_serve.engine.recording.rows import Emission, Rows
from gguf_serve.engine.recording.verbs import Verbs
from gguf_serve.kernels.attention.compress import Compression, KeyFinish, compress, store_keys
from gguf_serve.kernels.attention.indexer import Blocks, block_maxima, index_scores, select_keys
from gguf_serve.kernels.attention.joint import Ending, Keys, attend, score_keys
from gguf_serve.kernels.attention.kv import PAGE, LayerKV
from gguf_serve.kernels.attention.rope import QKNorm, RopeStyle, pool_keys
from gguf_serve.kernels.opencl.tensor import Tensor


class SparseVerbs(Verbs):
    """Where ``selected`` is what was chosen: bits of keys, int32 [tokens, words], which attention
    reads, of this layer and of later ones."""

    def index_scores(
        self, q: Rows, weights: Rows | None, keys: LayerKV, blocks: Blocks, *, by_head: int = 0
    ) -> Rows:
        """Scores of blocks of keys: by all heads together, or with ``by_head`` by each of so
        many."""
        inputs = self.context.inputs.attention
        n_keys = inputs.tables.shape[1] * PAGE
        out = self.rows((by_head or 1) * blocks.n_scores(n_keys))

        def run(e: Emission) -> None:
            if by_head:
                block_maxima(e.tape, e.floats(q), keys, inputs, blocks, e.floats(out))
                return
            factors = None if weights is None else e.floats(weights)
            index_scores(e.tape, e.floats(q), factors, keys, inputs, blocks, e.floats(out))

        reads = [q] if weights is None else [q, weights]
        self.launch(run, reads=reads, writes=[out], mixes=True)
        return out

    def score_keys(self, q: Rows, weights: Rows, keys: Keys, top_k: int) -> Rows:
        """Scores of compressed keys; see kernels/attention/joint.py."""
        n_keys = -(-keys.inputs.tables.shape[1] * PAGE // keys.ratio // 32) * 32
        out = self.rows(n_keys)

        def run(e: Emission) -> None:
            score_keys(e.tape, e.floats(q), e.floats(weights), keys, top_k, e.floats(out))

        self.launch(run, reads=[q, weights], writes=[out], mixes=True)
        return out

    def select(
        self,
        scores: Rows,
        blocks: Blocks,
        selected: Rows,
        *,
        n_rows: int = 1,
        by_block: bool = False,
    ) -> None:
        """Write which keys are chosen by the scores."""
        inputs = self.context.inputs.attention

        def run(e: Emission) -> None:
            select_keys(
                e.tape,
                e.floats(scores),
                inputs,
                blocks,
                e.floats(selected),
                n_rows,
                by_block=by_block,
            )

        self.launch(run, reads=[scores], writes=[selected])

    def pool_keys(
        self, cache: Cache, style: RopeStyle, norm: QKNorm | None, gates: Tensor | None
    ) -> None:
        """The keys of blocks that end in this step, of what their tokens left in the cache."""
        table = None if cache.table is None else self.context.block_table

        def run(e: Emission) -> None:
            pool_keys(
                e.tape, cache.pages, table, cache.slot_mapping, style=style, norm=norm, gates=gates
            )

        self.launch(run, writes=[], mixes=True)

    def compress(self, rows: Rows, c: Compression, finish: KeyFinish, keys: LayerKV) -> None:
        """Write the compressed keys that end in this step."""
        inputs, state = self.context.inputs, self.state(*c.state_shape)
        pooled = self.rows(c.width)

        def pool(e: Emission) -> None:
            compress(e.tape, e.floats(rows), c, inputs.sequences, state, e.floats(pooled))

        def store(e: Emission) -> None:
            store_keys(
                e.tape, e.floats(pooled), c.ratio, finish, inputs.attention.positions,
                inputs.slot_mapping, keys,
            )  # fmt: skip

        self.launch(pool, reads=[rows], writes=[pooled], mixes=True)
        self.launch(store, reads=[pooled], writes=[], mixes=True)

    def attend_jointly(
        self,
        q: Rows,
        n_heads: int,
        caches: Sequence[Keys],
        ending: Ending,
        selected: Rows | None = None,
    ) -> Rows:
        """softmax(q K) K over the keys of all caches together, rotated back; of the first one over
        those that are ``selected``."""
        out, so_far = self.rows(q.width), self.rows(2 * n_heads)

        def run(e: Emission) -> None:
            first, *others = caches
            if selected is not None:
                first = replace(first, selected=e.floats(selected))
            attend(
                e.tape, e.floats(q), n_heads, [first, *others], ending, e.floats(out),
                e.floats(so_far),
            )  # fmt: skip

        reads = [q] if selected is None else [q, selected]
        self.launch(run, reads=reads, writes=[out, so_far], mixes=True)
        return out
