"""The entries of a model's list: an ordinary layer is a mixer and an FFN, each with its norms.

An entry takes what goes from layer to layer, in most models the residual stream, and yields what
goes on. ``part`` says where it is computed, as an index of ``Placement.parts``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.kernels.quantization.weights import Matrix
from gguf_serve.kernels.rows.norm import NormWeights

Entry = Callable[[Graph, Rows], Rows]
EMBEDDING = "embedding"  # the name of tokens' embeddings among what is kept for later entries


class SublayerWeights(Protocol):
    """The weights of a mixer or an FFN, which know what is done with them: from rows to rows."""

    def __call__(self, g: Graph, x: Rows, layer: int, /) -> Rows: ...


class Sublayer(Struct, frozen=True):
    """x + post_norm(f(norm(x))). ``norm`` None: it shares that of the one before it in
    ``Together``; ``layer``: whose part of the KV cache it has."""

    part: int
    layer: int
    norm: NormWeights | None
    weights: SublayerWeights
    post_norm: NormWeights | None

    def __call__(self, g: Graph, x: Rows) -> Rows:
        y = self.yields(g, self.reads(g, x))
        with g.on(self.part):
            return g.add(x, y)

    def reads(self, g: Graph, x: Rows) -> Rows:
        """What f reads."""
        with g.on(self.part):
            return x if self.norm is None else g.norm(x, self.norm)

    def yields(self, g: Graph, x: Rows) -> Rows:
        """What is added to the stream, of what f reads."""
        with g.on(self.part):
            y = self.weights(g, x, self.layer)
            return y if self.post_norm is None else g.norm(y, self.post_norm)


class Together(Struct, frozen=True):
    """x + f(norm(x)) + f'(norm'(x)): sublayers that read the same stream."""

    sublayers: tuple[Sublayer, ...]

    def __call__(self, g: Graph, x: Rows) -> Rows:
        given = list[Rows]()
        for sublayer in self.sublayers:
            given.append(given[-1] if sublayer.norm is None else sublayer.reads(g, x))
        for sublayer, rows in zip(self.sublayers, given, strict=True):
            y = sublayer.yields(g, rows)
            with g.on(sublayer.part):
                x = g.add(x, y)
        return x


class NormsAfter(Struct, frozen=True):
    """norm(x + f(x)), or with an ``inner`` norm norm(x + inner(x + f(x)))."""

    sublayer: Sublayer
    norm: NormWeights
    inner: NormWeights | None = None

    def __call__(self, g: Graph, x: Rows) -> Rows:
        y = self.sublayer.yields(g, x)
        with g.on(self.sublayer.part):
            if self.inner is not None:
                y = g.norm(g.add(x, y), self.inner)
            return g.norm(g.add(x, y), self.norm)


class Skip(Struct, frozen=True):
    """x + the tokens' embeddings * scale."""

    part: int
    scale: float

    def __call__(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.part):
            return g.add(x, g.kept[EMBEDDING], scale=self.scale)


class Scaled(Struct, frozen=True):
    """x * scale."""

    part: int
    scale: float

    def __call__(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.part):
            return g.scaled(x, self.scale)


class Direction(Struct, frozen=True):
    """x + a control vector, the only row of a matrix."""

    part: int
    vector: Matrix

    def __call__(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.part):
            return g.add_row(x, self.vector)


class Deepstack(Struct, frozen=True):
    """x + further embeddings of an encoder, from column ``at`` on, if it has given so many."""

    part: int
    embedding: Matrix
    at: int

    def __call__(self, g: Graph, x: Rows) -> Rows:
        media = g.context.inputs.media
        if media is None or self.at + g.h.n_embd > media.shape[1]:
            return x
        with g.on(self.part):
            return g.deepstack(x, self.embedding, self.at)
