"""What makes a block's tokens of its logits by pairs of them (DFlash 2).

A block's rows are computed at once. The likeliest tokens of each are its candidates, and a pair of
a candidate and one of the row before has a score: the candidate's logit, and a product of the
rows that two tables have for both, through a gate that the candidate's hidden state makes. The
tables are models of no layers, of which their embeddings are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gguf_serve.engine.architecture.drafts import Selector
from gguf_serve.engine.forward.runner import RowLogits, Runner
from gguf_serve.engine.request import Request
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.kernels.attention.kv import PAGE

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Lattice(Struct, frozen=True):
    """Of a block's n rows but the first: ``candidates`` [n - 1, k], by the target's ids, and
    ``scores`` [n - 1, k, k], of candidate b after candidate a of the row before; the first row is
    that of the token that is known, after which all a are the same."""

    candidates: Ints
    scores: Floats

    def walk(self) -> Iterator[tuple[int, float]]:
        """The best candidate after the best before it, and its share of that one's scores."""
        before = 0
        for candidates, scores in zip(self.candidates, self.scores, strict=True):
            row = scores[before].astype(np.float64)
            before = int(row.argmax())
            yield int(candidates[before]), float(1 / np.exp(row - row[before]).sum())


class Selection:
    """The tables of a draft's selector."""

    def __init__(
        self, selector: Selector, tables: Sequence[Runner], max_tokens: int,
        ids: Ints | None = None,
    ) -> None:  # fmt: skip
        """``max_tokens``: of a step of the tables, and of a sequence; ``ids``: see Draft."""
        self.top_k, self._ids = selector.top_k, ids
        self._predecessors, self._successors = tables
        self._max_tokens = max_tokens

    def lattice(self, anchor: int, rows: Sequence[RowLogits], gates: Floats) -> Lattice:
        """Of a block that begins with the token ``anchor``; ``rows``: of its other places,
        ``gates``: what the draft's ranking head makes of them, float32 [n - 1, rank]."""
        found = [row.best(self.top_k) for row in rows]
        ids = np.array([best.ids for best in found], np.int64)
        candidates = ids if self._ids is None else self._ids[ids]
        logits = np.array([best.logits for best in found], np.float32)
        return Lattice(candidates, self.pairs(anchor, candidates, gates) + logits[:, None])

    def pairs(self, anchor: int, candidates: Ints, gates: Floats) -> Floats:
        """The products of pairs, as Lattice.scores."""
        before = np.concatenate([np.full((1, self.top_k), anchor), candidates[:-1]])
        gated = self._rows(self._predecessors, before) * gates[:, None]
        after = self._rows(self._successors, candidates)
        found: Floats = np.matmul(gated, after.swapaxes(1, 2))
        return found

    def _rows(self, table: Runner, tokens: Ints) -> Floats:
        """A table's rows: float32 [*tokens.shape, rank]."""
        listed, found = tokens.reshape(-1).tolist(), list[Floats]()
        for at in range(0, len(listed), self._max_tokens):
            some = listed[at : at + self._max_tokens]
            seq = RunningSequence.from_request(0, Request(tuple(some)))
            seq.slot, seq.table = 0, [0] * -(-len(some) // PAGE)
            table.forward([Chunk(seq, 0, len(some), "hidden")], (), ())
            found.append(table.hidden(range(len(some))))
        return np.concatenate(found).reshape(*tokens.shape, -1)
