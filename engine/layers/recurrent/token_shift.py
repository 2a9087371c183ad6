"""RWKV's token shift: what a sublayer reads lies between a token's rows and those of the token
before it, by a share for every column."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import TensorSource
from gguf_serve.kernels.opencl.tensor import Tensor


def load_shares(source: TensorSource, name: str, n: int, width: int) -> tuple[Tensor, ...]:
    """``n`` vectors of shares that lie in one tensor; ModelError unless it has so many."""
    found = source.floats(f"{name}.weight")
    if found is None or found.size != n * width:
        shape = "missing" if found is None else f"of shape {source.shape(f'{name}.weight')}"
        raise ModelError(f"{name}.weight is {shape}, expected {n} times {width} values")
    return tuple(source.upload(share) for share in found.reshape(n, width))


def shifted(g: Graph, x: Rows, shares: Sequence[Tensor]) -> list[Rows]:
    """For each share x + (x of the token before - x) * share."""
    before = g.before(x)
    return [g.lerp(x, before, by=share) for share in shares]
