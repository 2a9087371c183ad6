"""Convolutions over a sequence's tokens in which these see those after them (around.cl)."""

from __future__ import annotations

from gguf_serve.kernels.opencl.tape import SEQUENCES, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.gather import COLUMNS


def around(tape: Tape, x: Tensor, taps: int, sequences: Tensor, out: Tensor) -> None:
    """out[t, c * taps + j] = x[t + j - taps // 2, c], zeros beyond a sequence's ends.

    x: float32 [n, n_cols]; out: float32 [n, n_cols * taps]; sequences: int32 [s, 4]
    (recurrent/conv.cl).
    """
    n_cols = x.shape[-1]
    if taps % 2 == 0 or out.shape[-1] != n_cols * taps:
        raise ValueError(f"{taps} rows of {n_cols} values in rows of {out.shape[-1]}")
    args = {"x": x, "n_cols": n_cols, "sequences": sequences, "out": out}
    grid = (-(-n_cols // COLUMNS), Per(SEQUENCES))
    tape.add("rows/around.cl", "around", [f"TAPS={taps}"], args, grid)


def depthwise(
    tape: Tape, x: Tensor, weights: Tensor, sequences: Tensor, out: Tensor,
    *, bias: Tensor | None = None,
) -> None:  # fmt: skip
    """out[t, c] = sum_j weights[j, c] x[t + j - taps // 2, c] + bias[c].

    x, out: float32 [n, n_cols]; weights: float32 [taps, n_cols]; bias: [n_cols]; sequences as
    ``around``'s.
    """
    n_cols, taps = x.shape[-1], weights.shape[0]
    if taps % 2 == 0 or {weights.shape[1], out.shape[-1]} != {n_cols}:
        raise ValueError(
            f"weights {weights.shape} for rows of {n_cols} values, to rows of {out.shape[-1]}"
        )
    args = {
        "x": x, "n_cols": n_cols, "weights": weights, "bias": bias, "sequences": sequences,
        "out": out,
    }  # fmt: skip
    grid = (-(-n_cols // COLUMNS), Per(SEQUENCES))
    tape.add("rows/around.cl", "depthwise", [f"TAPS={taps}"], args, grid)
