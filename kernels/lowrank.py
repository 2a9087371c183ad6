"""Low-rank updates (LoRA): each token's own scales, between their two products (lowrank.cl)."""

from __future__ import annotations

import numpy as np

from kernels.tape import OUTPUTS, TOKENS, Per, Tape
from kernels.tensor import Tensor


def scale_columns(
    tape: Tape,
    x: Tensor,
    scales: Tensor,
    owner: Tensor,
    *,
    times: int = 1,
    rows: Tensor | None = None,
) -> None:
    """x[t, c] *= scales[t, owner[c]] for the step's tokens, in place; ``times`` rows for each, or
    with ``rows``, int32, one for each output, which is the token rows[t].

    x: float32 [n, columns]; scales: float32 in words of 32 bits [n, adapters]; owner: int32
    [columns], the adapter that a column belongs to.
    """
    if owner.shape != x.shape[1:]:
        raise ValueError(f"{owner.shape} owners for {x.shape[1]} columns")
    args = [
        x.buffer, scales.buffer, owner.buffer, np.int32(x.shape[1]), np.int32(scales.shape[1]),
    ]  # fmt: skip
    if rows is None:
        defines, count = [f"TIMES={times}"], Per(TOKENS, 1, times)
    else:
        args, defines, count = [*args, rows.buffer], ["ROWS"], Per(OUTPUTS)
    tape.add("lowrank.cl", "scale_columns", defines, args, (x.shape[1], count))
