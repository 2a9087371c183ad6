"""Convolutions over time in which nothing after a row counts: what codecs of sound are made of.

Kernels in a file: [taps, columns in, columns out] of a convolution, [taps, columns out, columns in]
of a transposed one, [taps, 1, columns] where each column has one of its own.
"""

from __future__ import annotations

import numpy as np

from gguf_serve.engine.encoders.geometry import Floats, Ints
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.vit import linear
from gguf_serve.engine.recording.rows import Rows


def convolved(
    g: Graph, x: Rows, name: str, stride: int = 1, *, dilation: int = 1, repeat: bool = False
) -> Rows:
    """[n, columns in] to [n / stride, columns out]. Before the first row there is that row again
    (``repeat``), or zeros."""
    kernel = g.weights.shape(f"{name}.weight")[0]
    if kernel == stride == 1:
        return linear(g, x, name)
    n_before = (kernel - 1) * dilation + 1 - stride
    starts = stride * np.arange(x.count // stride)[:, None] - n_before
    taps: Ints = np.maximum(starts + dilation * np.arange(kernel), 0 if repeat else -1)
    if _is_by_column(g, x, name):
        kernels = g.weights.floats(f"{name}.weight").reshape(x.width, kernel)
        return _biased(g, g.mixed(x, taps, np.ascontiguousarray(kernels.T)), name)
    return linear(g, g.gather(x, taps, by_channel=True), name)


def transposed(g: Graph, x: Rows, name: str, stride: int) -> Rows:
    """[n, columns in] to [n * stride, columns out]: each row's kernel is added to the result from
    ``stride`` times its place on; what goes over the end is left out.

    ``stride`` rows of the result are sums over the same few rows of x, so one row of a matrix
    product is all of them side by side.
    """
    n_seen = -(-g.weights.shape(f"{name}.weight")[0] // stride)
    seen: Ints = np.maximum(np.arange(x.count)[:, None] - np.arange(n_seen), -1)
    if _is_by_column(g, x, name):
        kernels = _by_phase(g.weights.floats(f"{name}.weight"), stride)
        factors = kernels.transpose(2, 0, 1, 3).reshape(n_seen, stride * x.width)
        wide = g.gather(x, np.repeat(np.arange(x.count)[:, None], stride, axis=1))
        y = g.mixed(wide, seen, np.ascontiguousarray(factors))
        return _biased(g, y.reshaped(x.count * stride), name)
    matrix = g.weights.rearranged(
        name, lambda kernels: _by_phase(kernels, stride).reshape(-1, n_seen * x.width), stride
    )
    return g.linear(g.gather(x, seen), matrix).reshaped(x.count * stride)


def _by_phase(kernels: Floats, stride: int) -> Floats:
    """Kernels [in, out, taps] as [stride, out, rows seen, in]: what the rows of x, the last first,
    have to do with each of the ``stride`` rows that begin at the last."""
    n_in, n_out, n_taps = kernels.shape
    whole = np.pad(kernels, ((0, 0), (0, 0), (0, -n_taps % stride)))
    return whole.reshape(n_in, n_out, -1, stride).transpose(3, 1, 2, 0)


def _is_by_column(g: Graph, x: Rows, name: str) -> bool:
    return x.width > 1 == g.weights.shape(f"{name}.weight")[1]


def _biased(g: Graph, x: Rows, name: str) -> Rows:
    if not g.weights.has(f"{name}.bias"):
        return x
    return g.add(x, g.constant(g.weights.floats(f"{name}.bias").reshape(1, -1)))
