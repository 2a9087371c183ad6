"""LFM2's mixer: a gated convolution over a few tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.recurrent.conv import ConvWeights


def load_convs(source: TensorSource, names: Sequence[str]) -> ConvWeights:
    """Convolutions over channels that lie side by side, as one.

    The file has the taps of a channel side by side, kernels want channels side by side.
    """
    columns = []
    for name in names:
        taps = source.shape(f"{name}.weight")[0]
        array = source.floats(f"{name}.weight")
        if array is not None:
            columns.append(array.reshape(-1, taps).T)
    weights = np.ascontiguousarray(np.concatenate(columns, axis=1))
    return ConvWeights(source.upload(weights), source.vector(f"{names[0]}.bias"))


class ShortConvWeights(Struct, frozen=True):
    """``inputs`` yields two gates and what is convolved between them."""

    inputs: Linear
    conv: ConvWeights
    output: Linear

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return short_conv(g, x, self)


def load_short_conv(source: TensorSource, layer: int) -> ShortConvWeights:
    """Layer ``layer``'s convolution; ModelError for tensors that are missing."""
    b = f"blk.{layer}.shortconv."
    return ShortConvWeights(
        source.linear(f"{b}in_proj"),
        load_convs(source, [f"{b}conv"]),
        source.linear(f"{b}out_proj"),
    )


def short_conv(g: Graph, x: Rows, w: ShortConvWeights) -> Rows:
    """W (c * conv(b * v)) for gates b and c."""
    n = w.conv.n_channels
    b, c, v = g.linear(x, w.inputs).split(n, n, n)
    return g.output(g.conv(v, w.conv, gate=b, out_gate=c), w.output)
