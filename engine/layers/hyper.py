"""Hyper-connections: a model with several residual streams instead of one.

Each sublayer reads a mixture of the streams and yields what is added to all of them, by factors
that a matrix finds from the streams themselves: mHC (https://arxiv.org/abs/2512.24880) with
doubly stochastic mixing, the same without mixing, and a variant with gates of low rank.
"""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.layers.ngram_embedding import (
    NGramWeights,
    load_ngram_embedding,
    ngram_embedding,
)
from gguf_serve.engine.layers.sublayer import Sublayer
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.rows.hyper import Mixing, n_coefficients
from gguf_serve.kernels.rows.norm import NormWeights

SUBLAYERS = ("attn", "ffn")


class Mixer(Struct, frozen=True):
    """Logits from all streams together, and what becomes of them."""

    fn: Linear
    mixing: Mixing


class HyperWeights(Struct, frozen=True):
    """``mixers``: of each layer's two sublayers; ``end`` None: the mean of the streams."""

    home: int  # the part of the model whose device has the streams
    count: int
    eps: float  # of the norm of all streams together
    mixers: tuple[tuple[Mixer, ...], ...]
    end: Mixer | None

    def begin(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.home):
            return g.spread(x, self.count)

    def tied(self, n: int, sublayer: Sublayer) -> HyperSublayer:
        return HyperSublayer(self, self.mixers[sublayer.layer][n], sublayer)

    def finish(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.home):
            if self.end is None:
                return g.reduce(x, self.count)
            return _mixture(g, x, self, self.end)[0]


def load_hyper(source: TensorSource, gguf: GGUFFile, h: Hyperparameters, home: int) -> HyperWeights:
    """The hyper-connections of a model; ModelError for what is missing or does not fit."""
    count = stream_count(gguf)
    eps = gguf.get_float(gguf.arch_key("hyper_connection.epsilon"))
    magnitude = gguf.get_float(gguf.arch_key("hyper_connection.magnitude"), 2.0)
    iterations = gguf.get_int(gguf.arch_key("hyper_connection.sinkhorn_iterations"), 0)

    def mixer(name: str, *sizes: int) -> Mixer:
        fn = source.linear(f"{name}_fn", count * h.n_embd)
        base, scale = (source.vector(f"{name}_{x}.weight") for x in ("base", "scale"))
        rows = fn.matrix.n_rows
        if base is None or scale is None or rows not in sizes or base.shape != (rows,):
            raise ModelError(f"{gguf.path}: {name}_fn, _base and _scale are missing or do not fit")
        independent = rows == 2 * count
        return Mixer(
            fn, Mixing(base, scale, eps, magnitude, eps if independent else 0.0, iterations)
        )

    sizes = 2 * count, n_coefficients(count)
    return HyperWeights(
        home=home,
        count=count,
        eps=h.eps,
        mixers=tuple(
            tuple(mixer(f"blk.{i}.hc_{name}", *sizes) for name in SUBLAYERS)
            for i in range(h.n_layers)
        ),
        end=mixer("output_hc", count) if source.has("output_hc_fn.weight") else None,
    )


def stream_count(gguf: GGUFFile) -> int:
    """How many residual streams there are; ModelError if that cannot be."""
    count = gguf.get_int(gguf.arch_key("hyper_connection.count"))
    if not 1 < count <= 16:
        raise ModelError(f"{gguf.path}: hyper_connection.count is {count}, expected 2 to 16")
    return count


class HyperSublayer(Struct, frozen=True):
    """A sublayer between the streams' mixture and their update."""

    streams: HyperWeights
    mixer: Mixer
    sublayer: Sublayer

    def __call__(self, g: Graph, streams: Rows) -> Rows:
        w, n_logits = self.streams, self.mixer.fn.matrix.n_rows
        with g.on(w.home):
            x, factors = _mixture(g, streams, w, self.mixer)
        y = self.sublayer.yields(g, self.sublayer.reads(g, x))
        with g.on(w.home):
            mix = n_logits == n_coefficients(w.count)
            return g.distribute(streams, y, factors, w.count, mix=mix)


def _mixture(g: Graph, streams: Rows, w: HyperWeights, mixer: Mixer) -> tuple[Rows, Rows]:
    """One stream of the several, and the factors of this place, which it is made by."""
    normed = g.norm(streams, NormWeights(None, w.eps, weightless=True))
    factors = g.coefficients(g.linear(normed, mixer.fn), mixer.mixing, w.count)
    return g.reduce(streams, w.count, factors), factors


class GatedMixer(Struct, frozen=True):
    """A norm of each stream, a gate of low rank, and logits of the factors afterwards."""

    norm: NormWeights
    down: Linear
    up: Linear
    inject: Linear | None


class GatedHyperWeights(Struct, frozen=True):
    """Qwen4's hyper-connections: their norms are those before sublayers and at the end."""

    home: int
    count: int
    ngrams: NGramWeights | None
    mixers: tuple[tuple[GatedMixer, ...], ...]
    end: GatedMixer

    def begin(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.home):
            return g.spread(x, self.count)

    def tied(self, n: int, sublayer: Sublayer) -> GatedHyperSublayer:
        return GatedHyperSublayer(self, self.mixers[sublayer.layer][n], sublayer, n == 0)

    def finish(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.home):
            return _gated_mixture(g, x, self.end, self.count)[0]


def load_gated_hyper(
    source: TensorSource, gguf: GGUFFile, h: Hyperparameters, home: int
) -> GatedHyperWeights:
    """Hyper-connections with gates; ModelError for what is missing or does not fit."""
    count = stream_count(gguf)
    width = count * h.n_embd

    def mixer(name: str) -> GatedMixer:
        weight = source.vector(f"{name}_norm.weight")
        if weight is None or weight.shape != (width,):
            raise ModelError(f"{gguf.path}: tensor {name}_norm.weight is missing or not {width}")
        down, up = source.linear(f"{name}_down", width), source.linear(f"{name}_up")
        source.check_rows(f"{name}_up.weight", width)
        return GatedMixer(
            NormWeights(weight, h.eps), down, up, source.optional_linear(f"{name}_inject")
        )

    return GatedHyperWeights(
        home,
        count,
        load_ngram_embedding(source, gguf, h, count),
        tuple(tuple(mixer(f"blk.{i}.hc_{name}") for name in SUBLAYERS) for i in range(h.n_layers)),
        mixer("output_hc"),
    )


class GatedHyperSublayer(Struct, frozen=True):
    """A sublayer between the streams' mixture and their update, which has no mixing."""

    streams: GatedHyperWeights
    mixer: GatedMixer
    sublayer: Sublayer
    begins_layer: bool

    def __call__(self, g: Graph, streams: Rows) -> Rows:
        w, mixer = self.streams, self.mixer
        with g.on(w.home):
            ngrams = w.ngrams if self.begins_layer else None
            if ngrams is not None and ngrams.layer == self.sublayer.layer:
                streams = ngram_embedding(g, streams, ngrams, w.count)
            x, normed = _gated_mixture(g, streams, mixer, w.count)
            assert mixer.inject is not None
            factors = g.injection(g.linear(normed, mixer.inject), w.count)
        y = self.sublayer.yields(g, self.sublayer.reads(g, x))
        with g.on(w.home):
            return g.distribute(streams, y, factors, w.count, mix=False)


def _gated_mixture(g: Graph, streams: Rows, mixer: GatedMixer, n: int) -> tuple[Rows, Rows]:
    """One stream of the several, and all of them normalized."""
    normed = g.norm(streams, mixer.norm, groups=n)
    gate = g.activate(g.linear(normed, mixer.down, scale=1.0 / n), "silu")
    return g.gated_mean(normed, g.linear(gate, mixer.up), n), normed
