"""The first and the last entry of a model's list: from tokens to embeddings, from hidden states to
logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gguf_serve.engine.layers.rank import RankOfMean, RankWeights, rank
from gguf_serve.engine.layers.sublayer import EMBEDDING
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, LowRankMatrices
from gguf_serve.kernels.quantization.weights import Matrix
from gguf_serve.kernels.rows.norm import NormWeights

LOWEST_LOGIT = float(np.finfo(np.float32).min)  # of tokens that are never generated


@dataclass(frozen=True, slots=True)
class Embedding:
    """Of ``token_types`` the first counts, and is added to every embedding."""

    part: int
    matrix: Matrix
    updates: LowRankMatrices | None  # not of an output that is tied to it
    positions: Matrix | None  # learned, one row per position
    token_types: Matrix | None
    norm: NormWeights | None

    def __call__(self, g: Graph) -> Rows:
        scale = g.h.embedding_scale
        with g.on(self.part):
            x = g.embed(self.matrix, lambda inputs: inputs.tokens, scale=scale, media=True)
            g.adapt_embedding(x, self.updates, scale)
            if self.positions is not None:
                x = g.add_embedding(x, self.positions, lambda inputs: inputs.attention.positions)
            if self.token_types is not None:
                x = g.add_row(x, self.token_types)
            if self.norm is not None:
                x = g.norm(x, self.norm)
        g.kept[EMBEDDING] = x
        return x


@dataclass(frozen=True, slots=True)
class Head:
    """``output`` is the embedding matrix itself where the file ties them and both are on one
    device, None for encoders."""

    part: int
    norm: NormWeights
    output: Linear | None
    rank: RankWeights | None
    rank_of_mean: RankOfMean | None

    def hidden(self, g: Graph, x: Rows) -> Rows:
        """The hidden states of all tokens."""
        with g.on(self.part):
            return g.copied(x) if self.norm.is_copy else g.norm(x, self.norm)

    def last(self, g: Graph, x: Rows) -> Rows:
        """Those of the tokens whose logits are wanted."""
        with g.on(self.part):
            return g.norm(g.wanted(x), self.norm)

    def scores(self, g: Graph, last: Rows) -> Rows | None:
        """What a ranking head makes of them."""
        with g.on(self.part):
            return None if self.rank is None else rank(g, last, self.rank)

    def logits(self, g: Graph, last: Rows) -> Rows | None:
        """Their logits."""
        if self.output is None:
            return None
        with g.on(self.part):
            rows = g.rows(g.h.n_vocab) if self.output.offset else None
            logits = g.linear(last, self.output, scale=g.h.logit_scale, into=rows)
            if g.h.logit_softcap:
                g.softcap(logits, g.h.logit_softcap)
            return logits
