"""Qwen4's n-gram embeddings: at one layer, values from a large table of hashed n-grams are added
to the residual streams, gated by the streams themselves, and convolved."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.architecture.ngrams import NGrams
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.quantization.weights import Matrix
from gguf_serve.kernels.recurrent.conv import ConvWeights
from gguf_serve.kernels.rows.norm import NormWeights


class NGramWeights(Struct, frozen=True):
    """``table`` has the embeddings; norms are of each stream by itself."""

    layer: int
    ngrams: NGrams
    table: Matrix
    key: Linear
    value: Linear
    key_norm: NormWeights
    query_norm: NormWeights
    conv_norm: NormWeights
    conv: ConvWeights


def load_ngram_embedding(
    source: TensorSource, gguf: GGUFFile, h: Hyperparameters, n_streams: int
) -> NGramWeights | None:
    """The n-gram embeddings, or None if there are none; ModelError for what does not fit."""
    ngrams = h.ngrams
    if ngrams is None:
        return None
    layers = [int(i) for i in gguf.metadata[gguf.arch_key("ple.layers")]]
    if len(layers) != 1 or not 0 <= layers[0] < h.n_layers:
        raise ModelError(f"{gguf.path}: n-gram embeddings (ple.layers) at {layers}, not one layer")
    b, width = f"blk.{layers[0]}.ple_", n_streams * h.n_embd

    def norm_of(name: str) -> NormWeights:
        weight = source.vector(f"{b}norm_{name}.weight")
        if weight is None or weight.shape != (width,):
            raise ModelError(f"{gguf.path}: {b}norm_{name}.weight is missing or not {width}")
        return NormWeights(weight, h.eps)

    source.check_rows(f"{b}key.weight", width)
    source.check_rows(f"{b}value.weight", h.n_embd)
    return NGramWeights(
        layers[0], ngrams, source.matrix("per_layer_token_embd.weight"),
        source.linear(f"{b}key"), source.linear(f"{b}value"),
        norm_of("key"), norm_of("query"), norm_of("conv"),
        _dilated(source, f"{b}conv1d.weight", len(ngrams.multipliers)),
    )  # fmt: skip


def _dilated(source: TensorSource, name: str, dilation: int) -> ConvWeights:
    """A convolution of taps that are so many tokens apart: zeros between them."""
    taps, channels = source.shape(name)
    array = source.floats(name)
    assert array is not None
    weights = np.zeros(((taps - 1) * dilation + 1, channels), np.float32)
    weights[::dilation] = array.reshape(channels, taps).T
    return ConvWeights(source.upload(weights))


def ngram_embedding(g: Graph, streams: Rows, w: NGramWeights, n: int) -> Rows:
    """``n`` streams plus gated embeddings, and plus a convolution of these."""
    if g.context.inputs.ngrams is None:
        return streams
    x = g.embed(w.table, lambda inputs: inputs.ngrams, times=w.ngrams.n_heads)
    key, value = g.linear(x, w.key), g.linear(x, w.value)
    key = g.norm(key, w.key_norm, groups=n)
    query = g.norm(streams, w.query_norm, groups=n)
    gated = g.gate_ngrams(key, query, value, n)
    streams = g.add(streams, gated)
    return g.add(streams, g.conv(g.norm(gated, w.conv_norm, groups=n), w.conv, silu=True))
