"""Qwen4's n-gram embeddings: at one layer, values from a large table of hashed n-grams are added
to the residual streams, gated by the streams themselves, and convolved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.architecture.ngrams import NGrams
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.recording.step import Context, Step
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.matrix.embed import embed
from gguf_serve.kernels.matrix.matmul import matmul
from gguf_serve.kernels.matrix.moe import combine
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.quantization.weights import Matrix
from gguf_serve.kernels.recurrent.conv import ConvWeights, conv
from gguf_serve.kernels.rows.ngram import gate_ngrams
from gguf_serve.kernels.rows.norm import UNCHANGED, NormWeights, norm


@dataclass(frozen=True, slots=True)
class NGramWeights:
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


class NGramEmbedding:
    """The embeddings with the memory that they need."""

    def __init__(self, weights: NGramWeights, context: Context, n_streams: int) -> None:
        workspace, w, n_embd = context.workspace, weights, context.h.n_embd
        self._w, self._c, self._n = weights, context, n_streams
        heads, width = w.ngrams.n_heads, n_streams * n_embd
        self._embedded = workspace.rows("ngrams", w.table.n_cols, heads)
        self._read = workspace.activations("ngrams read", [w.key, w.value])
        self._key, self._query = (workspace.rows(f"ngram {x}", width) for x in ("key", "query"))
        self._value = workspace.rows("ngram value", n_embd)
        self._gated = workspace.rows("ngrams gated", width)
        self._state = context.states.rows(context.device, *w.conv.state_shape)

    def record(self, step: Step, layer: int, streams: Tensor) -> None:
        """Add to the streams before ``layer``, if this is the layer."""
        w, tape, c = self._w, step.tape, self._c
        if layer != w.layer or c.inputs.ngrams is None:
            return
        embed(tape, w.table, c.inputs.ngrams, self._embedded, times=w.ngrams.n_heads)
        shape = (streams.shape[0], w.ngrams.n_heads * w.table.n_cols)
        side_by_side = Tensor(self._embedded.buffer, shape, self._embedded.dtype)
        norm(tape, side_by_side, UNCHANGED, self._read)
        for linear, out in ((w.key, self._key), (w.value, self._value)):
            matmul(
                tape, linear.matrix, self._read, out, c.inputs.counts, tile=step.tile,
                bias=linear.bias,
            )  # fmt: skip
        self._norm(step, self._key, w.key_norm, self._key)
        self._norm(step, streams, w.query_norm, self._query)
        gate_ngrams(tape, self._key, self._query, self._value, self._n, self._gated)
        combine(tape, self._gated, streams, add=True)
        self._norm(step, self._gated, w.conv_norm, self._key)
        conv(tape, self._key, w.conv, c.inputs.sequences, self._state, self._query, silu=True)
        combine(tape, self._query, streams, add=True)

    def _norm(self, step: Step, x: Tensor, weights: NormWeights, out: Tensor) -> None:
        norm(step.tape, x, weights, Activations(x.shape[1], out), groups=self._n)
