"""Residual streams that are not just a sum: what a sublayer reads, and where its output goes.

A model has ``Residuals`` if its file has the tensors of one of these kinds, or its architecture
says so. They tie its sublayers to what goes from layer to layer instead of the stream; ``begin``
makes that of the embedding, and ``finish`` makes one stream of it for the last norm.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.layers.hyper import load_gated_hyper, load_hyper
from gguf_serve.engine.layers.sublayer import Entry, Sublayer
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.weights import Matrix
from gguf_serve.kernels.rows.norm import NormWeights

CHECKPOINTS, LOW, HIGH = "checkpoints", "low state", "high state"  # names of what is kept
PREDICTIONS, FIRST = "predicted streams", "first stream"  # names of what is kept


class Residuals(Protocol):
    """One model's way with its residual streams."""

    def begin(self, g: Graph, x: Rows, /) -> Rows: ...

    def tied(self, n: int, sublayer: Sublayer, /) -> Entry:
        """The entry of a layer's mixer (n = 0), FFN (n = 1) or own embedding (n = 2)."""

    def finish(self, g: Graph, x: Rows, /) -> Rows: ...


def load_residuals(
    source: TensorSource, gguf: GGUFFile, h: Hyperparameters, home: int
) -> Residuals | None:
    """The model's residual streams, or None for the ordinary one. ``home``: the part of the model
    whose device has them."""
    if source.has("altup_proj.weight"):
        return load_altup(source, h, home)
    if source.has("blk.0.hc_attn_fn.weight"):
        return load_hyper(source, gguf, h, home)
    if source.has("blk.0.hc_attn_norm.weight"):
        return load_gated_hyper(source, gguf, h, home)
    if source.has("blk.0.attn_res_score.weight"):
        return _load_depth(source, gguf, h, home)
    if h.cycles is not None:
        return CyclesWeights(home, source.matrix("hrm.z_l_init"), *h.cycles, h.eps)
    if "normed_residuals" in h.arch.quirks:
        return NormedWeights(home, gguf.get_float(gguf.arch_key("residual_scale")))
    return None


def _required(source: TensorSource, name: str) -> Tensor:
    vector = source.vector(name)
    if vector is None:
        raise ModelError(f"tensor {name} is missing")
    return vector


class DepthWeights(Struct, frozen=True):
    """Kimi K3 (https://arxiv.org/abs/2603.15031): every so many layers the stream is put aside
    and begins again; sublayers read a mixture of it and what has been put aside."""

    home: int
    every: int
    scores: tuple[tuple[Tensor, Tensor], ...]
    end: Tensor
    eps: float

    @property
    def n_checkpoints(self) -> int:
        return -(-len(self.scores) // self.every)

    def begin(self, g: Graph, x: Rows) -> Rows:
        g.kept[CHECKPOINTS] = g.rows(x.width, self.n_checkpoints)
        return x

    def tied(self, n: int, sublayer: Sublayer) -> DepthSublayer:
        n_before = sublayer.layer // self.every
        begins = n == 0 and sublayer.layer % self.every == 0
        scores = self.scores[sublayer.layer][n]
        return DepthSublayer(self, sublayer, scores, n_before + (not begins), begins)

    def finish(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.home):
            return g.mix_depth(g.kept[CHECKPOINTS], self.n_checkpoints, x, self.end, self.eps)


def _load_depth(
    source: TensorSource, gguf: GGUFFile, h: Hyperparameters, home: int
) -> DepthWeights:
    every = gguf.get_int(gguf.arch_key("attn_res.block_size"))
    if every < 1:
        raise ModelError(
            f"{gguf.path}: {gguf.arch_key('attn_res.block_size')} is {every}, expected 1 or more"
        )

    def scores(layer: int) -> tuple[Tensor, Tensor]:
        b = f"blk.{layer}."
        return (
            _required(source, f"{b}attn_res_score.weight"),
            _required(source, f"{b}ffn_res_score.weight"),
        )

    end = _required(source, "output_res_score.weight")
    return DepthWeights(home, every, tuple(scores(i) for i in range(h.n_layers)), end, h.eps)


class DepthSublayer(Struct, frozen=True):
    """x is the sum since the last checkpoint, of which there are ``n`` before; one that ``begins``
    makes the next checkpoint of it, and a new sum."""

    streams: DepthWeights
    sublayer: Sublayer
    scores: Tensor
    n: int
    begins: bool

    def __call__(self, g: Graph, x: Rows) -> Rows:
        bank, given = g.kept[CHECKPOINTS], x
        with g.on(self.streams.home):
            if self.n:
                given = g.mix_depth(bank, self.n, x, self.scores, self.streams.eps)
            if self.begins:
                g.put(x, bank, self.n)
        y = self.sublayer.yields(g, self.sublayer.reads(g, given))
        with g.on(self.sublayer.part):  # who writes y adds it, which may round otherwise
            return y if self.begins else g.add(x, y)


class CyclesWeights(Struct, frozen=True):
    """HRM (https://arxiv.org/abs/2506.21734): a low stack of layers runs ``low`` times, then a
    high one once, and that ``high`` times; each reads the sum of both states. A layer of the model
    is one run through a layer of the file."""

    home: int
    initial: Matrix  # the low state's
    per_stack: int
    low: int
    high: int
    eps: float

    def begin(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.home):
            g.kept[HIGH], g.kept[LOW] = x, g.row(self.initial)
        return x

    def tied(self, n: int, sublayer: Sublayer) -> CycleSublayer:
        stack, i = divmod(sublayer.layer, self.per_stack)
        changes = LOW if stack % (self.low + 1) < self.low else HIGH
        begins, ends = n == 0 and i == 0, n == 1 and i == self.per_stack - 1
        return CycleSublayer(self, sublayer, changes, begins, ends)

    def finish(self, g: Graph, x: Rows) -> Rows:
        return g.kept[HIGH]


class CycleSublayer(Struct, frozen=True):
    """x is the stream of the stack that runs, which ``begins`` with the sum of both states, and
    where it ``ends`` becomes the one that it ``changes``."""

    streams: CyclesWeights
    sublayer: Sublayer
    changes: str
    begins: bool
    ends: bool

    def __call__(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.streams.home):
            x = g.add(g.kept[HIGH], g.kept[LOW]) if self.begins else x
        y = self.sublayer.yields(g, self.sublayer.reads(g, x))
        with g.on(self.streams.home):
            x = g.add(x, y)
            if self.ends:
                x = g.norm(x, NormWeights(None, self.streams.eps, weightless=True))
                g.kept[self.changes] = x
            return x


class NormedWeights(Struct, frozen=True):
    """MiniMax-01: a sublayer's output is added to what it has read, which is the normalized
    stream, times ``scale``."""

    home: int
    scale: float

    def begin(self, g: Graph, x: Rows) -> Rows:
        return x

    def tied(self, n: int, sublayer: Sublayer) -> NormedSublayer:
        return NormedSublayer(self, sublayer)

    def finish(self, g: Graph, x: Rows) -> Rows:
        return x


class NormedSublayer(Struct, frozen=True):
    """norm(x) * scale + f(norm(x))."""

    streams: NormedWeights
    sublayer: Sublayer

    def __call__(self, g: Graph, x: Rows) -> Rows:
        x = self.sublayer.reads(g, x)
        y = self.sublayer.yields(g, x)
        with g.on(self.streams.home):
            return g.add(g.scaled(x, self.streams.scale), y)


class AltUpLayer(Struct, frozen=True):
    """What a layer has of AltUp, and of Laurel (https://arxiv.org/abs/2411.07501) beside its
    attention. The router's norm has 1 / n_embd in its weight; ``predict`` and ``correct`` make
    factors of its logits."""

    norm: NormWeights
    router: Linear
    predict: Tensor
    correct: Tensor
    scale: Tensor  # of the first stream, for the layer's own embedding
    left: Linear
    right: Linear
    laurel_norm: NormWeights

    def modalities(self, g: Graph, x: Rows) -> Rows:
        """The router's logits of the first stream."""
        return g.linear(g.norm(x, self.norm), self.router)

    def laurel(self, g: Graph, x: Rows) -> Rows:
        """x + norm(W W' x)."""
        return g.add(x, g.norm(g.linear(g.linear(x, self.left), self.right), self.laurel_norm))


class AltUpWeights(Struct, frozen=True):
    """Gemma 3n (https://arxiv.org/abs/2301.13310): of four streams layers read one. ``spread``
    makes the other streams of the embedding, ``merge`` brings each of them back."""

    home: int  # the part of the model whose device has the streams
    spread: Linear
    layers: tuple[AltUpLayer, ...]
    merge: tuple[Linear, ...]

    @property
    def count(self) -> int:
        return len(self.merge) + 1

    def begin(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.home):
            streams = g.rows(self.count * x.width)
            first, others = streams.split(x.width, streams.width - x.width)
            g.copy(x, first)
            g.linear(x, self.spread, into=others)
            g.match(streams, self.count)
            return streams

    def tied(self, n: int, sublayer: Sublayer) -> Entry:
        """Attention, the FFN, or what the layer's own embedding adds."""
        kinds = AltUpAttention, AltUpFFN, AltUpEmbedding
        return kinds[n](self.home, self.layers[sublayer.layer], sublayer)

    def finish(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.home):
            merged, width = g.rows(x.width), x.width // self.count
            (first, *others), (into, *columns) = (
                rows.split(*[width] * self.count) for rows in (x, merged)
            )
            g.copy(first, into)
            for stream, matrix, out in zip(others, self.merge, columns, strict=True):
                g.linear(stream, matrix, into=out)
            g.match(merged, self.count)
            return g.reduce(merged, self.count)


class AltUpAttention(Struct, frozen=True):
    """From the streams to (x + f(norm(x)) + laurel(norm(x))) / sqrt(2), x the first as it is
    predicted."""

    home: int
    layer: AltUpLayer
    sublayer: Sublayer

    def __call__(self, g: Graph, streams: Rows) -> Rows:
        w = self.layer
        with g.on(self.home):
            width = streams.width // w.router.matrix.n_rows
            logits = w.modalities(g, streams.split(width)[0])
            g.kept[PREDICTIONS], x = g.predict(streams, logits, w.predict)
        normed = self.sublayer.reads(g, x)
        y = self.sublayer.yields(g, normed)
        with g.on(self.home):
            return g.scaled(g.add(g.add(x, y), w.laurel(g, normed)), 0.5**0.5)


class AltUpFFN(Struct, frozen=True):
    """From that to the streams, corrected by what becomes of it."""

    home: int
    layer: AltUpLayer
    sublayer: Sublayer

    def __call__(self, g: Graph, x: Rows) -> Rows:
        w, x = self.layer, self.sublayer(g, x)
        with g.on(self.home):
            streams, g.kept[FIRST] = g.correct(
                g.kept[PREDICTIONS], x, w.modalities(g, x), w.correct, w.scale
            )
            return streams


class AltUpEmbedding(Struct, frozen=True):
    """The layer's own embedding is gated by the first stream, and added to the others."""

    home: int
    layer: AltUpLayer
    sublayer: Sublayer

    def __call__(self, g: Graph, streams: Rows) -> Rows:
        y = self.sublayer.yields(g, g.kept[FIRST])
        with g.on(self.home):
            return g.add_others(streams, y)


def load_altup(source: TensorSource, h: Hyperparameters, home: int) -> AltUpWeights:
    """ModelError for what is missing or does not fit."""
    count = source.shape("altup_proj.weight")[-1] + 1
    whole = source.part("altup_unembd_proj", h.n_embd)
    for name in ("altup_proj.weight", "altup_unembd_proj.weight"):
        source.check_shape(name, (h.n_embd, h.n_embd, count - 1))
    return AltUpWeights(
        home,
        source.linear("altup_proj", h.n_embd),
        tuple(_load_layer(source, h, f"blk.{i}.", count) for i in range(h.n_layers)),
        tuple(
            source.stacked([whole.rows(i * h.n_embd, (i + 1) * h.n_embd)])[0]
            for i in range(count - 1)
        ),
    )


def _load_layer(source: TensorSource, h: Hyperparameters, b: str, count: int) -> AltUpLayer:
    shapes = {
        "predict_coef": (count, count * count), "correct_coef": (count, count),
        "correct_scale": (h.n_embd,), "router_norm": (h.n_embd,), "router": (h.n_embd, count),
    }  # fmt: skip
    for name, shape in shapes.items():
        source.check_shape(f"{b}altup_{name}.weight", shape)
    norm = source.floats(f"{b}altup_router_norm.weight")
    predict, correct, scale = (
        source.table(f"{b}altup_{x}.weight")
        for x in ("predict_coef", "correct_coef", "correct_scale")
    )
    laurel_norm = source.vector(f"{b}laurel_post_norm.weight")
    if norm is None or predict is None or correct is None or scale is None or laurel_norm is None:
        raise ModelError(f"tensors {b}altup_* or {b}laurel_post_norm.weight are missing")
    return AltUpLayer(
        NormWeights(source.upload(norm / h.n_embd), h.eps),
        source.linear(f"{b}altup_router", h.n_embd),
        predict, correct, scale,
        source.linear(f"{b}laurel_l", h.n_embd), source.linear(f"{b}laurel_r"),
        NormWeights(laurel_norm, h.eps),
    )  # fmt: skip
