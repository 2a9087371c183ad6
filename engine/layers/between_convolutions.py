"""Sublayers between two convolutions over the tokens of a block that is drafted (DFlash 2).

Each convolution has weights of its own, to which a matrix adds shares that it finds from what the
sublayer is to read: for both of them at once. It sees a block's tokens, and none before."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.layers.sublayer import SublayerWeights
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.opencl.tensor import Tensor


class BetweenConvolutions(Struct, frozen=True):
    """conv'(f(conv(x))). ``weights``: of both convolutions, float32 [taps, n_embd]; ``group``:
    channels that have their share together."""

    weights: tuple[Tensor, Tensor]
    shares: Linear
    group: int
    inner: SublayerWeights

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        half = self.shares.matrix.n_rows // 2
        before, after = g.linear(x, self.shares).split(half, half)
        y = self.inner(g, g.dynamic_conv(x, self.weights[0], before, self.group), layer)
        return g.dynamic_conv(y, self.weights[1], after, self.group)


def between_convolutions(
    source: TensorSource, h: Hyperparameters, name: str, inner: SublayerWeights
) -> SublayerWeights:
    """The sublayer between the convolutions ``name``, or as it is if there are none. ModelError for
    tensors that are missing or do not fit."""
    if not source.has(f"{name}_proj.weight"):
        return inner
    width, taps, *_ = shape = source.shape(f"{name}_base.weight")
    source.check_shape(f"{name}_base.weight", (h.n_embd, taps, 2))
    shares = source.linear(f"{name}_proj", h.n_embd)
    n_groups, rest = divmod(shares.matrix.n_rows, 2 * taps)
    if rest or not n_groups or width % n_groups:
        raise ModelError(
            f"tensor {name}_proj.weight has {shares.matrix.n_rows} rows, not shares of groups for "
            f"two convolutions as {name}_base of shape {shape} has them"
        )
    base = source.floats(f"{name}_base.weight")
    assert base is not None
    before, after = np.ascontiguousarray(base.reshape(2, taps, width))
    return BetweenConvolutions(
        (source.upload(before), source.upload(after)), shares, width // n_groups, inner
    )
