"""The first and the last entry of a model's list: from tokens to embeddings, from hidden states to
logits. And embeddings per layer (Gemma 3n and 4): a token has a narrow embedding for each layer,
beside the one that the stream begins with. After a layer it is gated by the stream, and added."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.layers.rank import RankOfMean, RankWeights, rank
from gguf_serve.engine.layers.sublayer import EMBEDDING
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.low_rank import LowRankMatrices
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.quantization.weights import Matrix
from gguf_serve.kernels.rows.norm import NormWeights

LOWEST_LOGIT = float(np.finfo(np.float32).min)  # of tokens that are never generated
EMBEDDINGS = "embeddings per layer"  # the name of what is kept for the layers
TABLE = "per_layer_token_embd.weight"


class Embedding(Struct, frozen=True):
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


class Head(Struct, frozen=True):
    """``output`` is the embedding matrix itself where the file ties them and both are on one
    device, None for encoders. ``dense``: matrices that hidden states go through at last, which
    are meant for pooled ones; being linear, they may come before."""

    part: int
    norm: NormWeights
    output: Linear | None
    rank: RankWeights | None
    rank_of_mean: RankOfMean | None
    dense: tuple[Linear, ...] = ()
    norms_hidden: bool = True  # False: hidden states are from before the norm

    def has_silent_tokens(self, h: Hyperparameters) -> bool:
        """Whether some tokens have no row in the output, and so always the lowest logit."""
        return self.output is not None and self.output.matrix.n_rows < h.n_vocab

    def hidden(self, g: Graph, x: Rows) -> Rows:
        """The hidden states of all tokens."""
        with g.on(self.part):
            as_is = self.norm.is_copy or not self.norms_hidden
            x = g.copied(x) if as_is else g.norm(x, self.norm)
            return g.through(x, self.dense)

    def unnormed(self, g: Graph, streams: Rows) -> Rows:
        """The same from before the last norm, and before residual streams become one."""
        with g.on(self.part):
            return g.copied(streams)

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
            rows = g.rows(g.h.n_vocab) if self.has_silent_tokens(g.h) else None
            logits = g.linear(last, self.output, scale=g.h.logit_scale, into=rows)
            if g.h.logit_softcap:
                g.softcap(logits, g.h.logit_softcap)
            return logits


class PerLayerEmbedding(Struct, frozen=True):
    """(norm(W x) + the token's row of ``table``) / sqrt(2) for all layers, side by side. Images and
    sounds have the row of token 0, as in training."""

    part: int
    table: Matrix
    updates: LowRankMatrices | None
    projection: Linear
    norm: NormWeights  # of a layer's values; / sqrt(2) is in its weight

    def __call__(self, g: Graph, x: Rows) -> Rows:
        n = g.h.n_layers
        scale = (self.table.n_cols / n / 2) ** 0.5
        with g.on(self.part):
            tokens = g.embed(self.table, lambda inputs: inputs.tokens, scale=scale, padded=True)
            g.adapt_embedding(tokens, self.updates, scale)
            projected = g.linear(x, self.projection, scale=g.h.n_embd**-0.5)
            g.kept[EMBEDDINGS] = g.add(tokens, g.norm(projected.by_head(n), self.norm))
        return x


class PerLayerGate(Struct, frozen=True):
    """W (act(gate x) * the layer's embedding)."""

    gate: Linear
    output: Linear

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        width = self.gate.matrix.n_rows
        mine = g.kept[EMBEDDINGS].split(*[width] * g.h.n_layers)[layer]
        return g.linear(
            g.activate(g.linear(x, self.gate), g.h.arch.activation, times=mine), self.output
        )


def load_per_layer_embedding(
    source: TensorSource, h: Hyperparameters, part: int
) -> PerLayerEmbedding | None:
    """What comes before the layers, or None if the file has no such table."""
    if not source.has("blk.0.inp_gate.weight"):
        return None
    weight = source.floats("per_layer_proj_norm.weight")
    if weight is None:
        raise ModelError("tensor per_layer_proj_norm.weight is missing")
    width = h.n_layers * len(weight)
    source.check_shape(TABLE, (width, h.n_vocab))
    projection = source.linear("per_layer_model_proj", h.n_embd)
    source.check_rows("per_layer_model_proj.weight", width)
    return PerLayerEmbedding(
        part, source.matrix(TABLE), source.embedding_updates(TABLE), projection,
        NormWeights(source.upload(weight * 0.5**0.5), h.eps),
    )  # fmt: skip


def load_per_layer_gate(
    source: TensorSource, h: Hyperparameters, layer: int
) -> tuple[PerLayerGate, NormWeights] | None:
    """What a layer does with its embedding, and the norm of that; None if it has none."""
    b = f"blk.{layer}."
    if not source.has(f"{b}inp_gate.weight"):
        return None
    norm = source.vector(f"{b}post_norm.weight")
    if norm is None:
        raise ModelError(f"tensor {b}post_norm.weight is missing")
    gate, output = source.linear(f"{b}inp_gate", h.n_embd), source.linear(f"{b}proj")
    table = source.shape(TABLE)[0]
    if gate.matrix.n_rows * h.n_layers != table:
        raise ModelError(
            f"tensor {b}inp_gate.weight has {gate.matrix.n_rows} rows, expected "
            f"{table / h.n_layers:g} of the {table} columns of {TABLE}"
        )
    return PerLayerGate(gate, output), NormWeights(norm, h.eps)
