"""Biases of scores by the distance from a query to a key, in buckets (T5).

Short distances have a bucket each, longer ones up to DISTANCE share buckets by their logarithm, and
all that are longer are in the last. Where tokens see those after them, these have half of the
buckets: https://arxiv.org/abs/1910.10683, section 2.1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.recording.tensors import TensorSource
from gguf_serve.kernels.opencl.tensor import Tensor

DISTANCE = 128  # from where on all share a bucket
Integers = npt.NDArray[np.int64]


def load_biases(source: TensorSource, h: Hyperparameters, layer: int) -> Tensor | None:
    """What Mask.biases is for a layer: of its own biases, or the first layer's of its stack; None
    for models without. ModelError for tensors that are missing or do not fit."""
    if not h.distance_buckets:
        return None
    encodes = not h.causal or layer < h.n_encoder
    own, first = (f"blk.{i}.attn_rel_b.weight" for i in (layer, 0 if encodes else h.n_encoder))
    name = own if source.has(own) else first
    source.check_shape(name, (h.n_heads[layer], h.distance_buckets))
    biases = source.floats(name)
    if biases is None:
        raise ModelError(f"tensor {name} is missing")
    found = buckets(np.arange(-DISTANCE, DISTANCE + 1), h.distance_buckets, both_ways=encodes)
    return source.upload(np.ascontiguousarray(biases.reshape(h.distance_buckets, -1)[found].T))


def buckets(distances: Integers, n: int, *, both_ways: bool) -> Integers:
    """The bucket of each distance, of ``n``: negative ones are of keys before the query."""
    n_side = n // 2 if both_ways else n
    far = np.abs(distances) if both_ways else np.maximum(-distances, 0)
    n_exact = n_side // 2
    logarithms = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(n_exact))
    shared = n_exact + logarithms * (n_side - n_exact) / np.log(DISTANCE / n_exact)
    sides = np.where(distances > 0, n_side, 0) if both_ways else 0
    return sides + np.where(far < n_exact, far, np.minimum(shared.astype(np.int64), n_side - 1))
