"""Token embeddings: rows of a packed matrix (embed.cl)."""

from __future__ import annotations

import numpy as np

from kernels.tape import TOKENS, Per, Tape
from kernels.tensor import Tensor
from kernels.weights import BLOCK, Matrix


def embed(
    tape: Tape,
    w: Matrix,
    ids: Tensor,
    out: Tensor,
    scale: float = 1.0,
    *,
    add: bool = False,
    times: int = 1,
) -> None:
    """out[t] (+)= scale * w[ids[t]], float32 [n, n_cols]; ``times`` rows for each token."""
    if w.paired or out.shape[-1] != w.n_cols:
        raise ValueError(f"embedding of {w.n_cols} columns into rows of {out.shape[-1]}")
    defines = [w.define, *["ADD"] * add, *["SLAB"] * bool(w.slabs)]
    for row, part in w.parts:
        args = [
            part.buffer, np.uint64(part.scales_at), np.int32(w.n_blocks), np.int32(w.n_cols),
            ids.buffer, np.float32(scale), out.buffer,
            *([np.int32(row), np.int32(part.n_rows)] if w.slabs else []),
        ]  # fmt: skip
        grid = (-(-w.n_cols // BLOCK), Per(TOKENS, 1, times))
        tape.add("embed.cl", "embed", defines, args, grid)
