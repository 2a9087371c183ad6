"""Low-rank updates (LoRA): each token's own scales, between their two products (lowrank.cl)."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor


def scale_columns(
    tape: Tape,
    x: Tensor,
    scales: Tensor,
    owner: Tensor,
    *,
    count: int = TOKENS,
    times: int = 1,
) -> None:
    """x[t, c] *= scales[t / times, owner[c]], in place: ``times`` rows for each of counts[count].

    x: float32 [n, columns]; scales: float32 in words of int32 [n, adapters]; owner: int32
    [columns], the adapter that a column belongs to.
    """
    if owner.shape != x.shape[1:]:
        raise ValueError(f"{owner.shape} owners for {x.shape[1]} columns")
    floats = replace(scales, dtype=np.dtype(np.float32))
    args = {
        "x": x, "scales": floats, "owner": owner, "n_cols": x.shape[1],
        "n_adapters": scales.shape[1],
    }  # fmt: skip
    grid = (x.shape[1], Per(count, 1, times))
    tape.add("matrix/lowrank.cl", "scale_columns", [f"TIMES={times}"], args, grid)
