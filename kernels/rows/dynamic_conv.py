"""Causal convolution over a step's tokens, with weights of each token's own (dynamic_conv.cl)."""

from __future__ import annotations

from gguf_serve.kernels.opencl.tape import SEQUENCES, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.gather import COLUMNS


def dynamic_conv(
    tape: Tape,
    x: Tensor,
    weights: Tensor,
    shares: Tensor,
    group: int,
    sequences: Tensor,
    out: Tensor,
    *,
    shares_at: int = 0,
) -> None:
    """out[t, c] = sum_j (weights[j, c] + shares[t, j * groups + c // group]) x[t - j, c] of the
    tokens that a sequence has in the step.

    x, out: float32 [n, n_cols]; weights: float32 [taps, n_cols]; shares: float32 [n, width], of
    which these columns begin at ``shares_at``; sequences: int32 [s, 4] (recurrent/conv.cl).
    ValueError for groups that do not fit.
    """
    n_cols, taps = x.shape[-1], weights.shape[0]
    if {weights.shape[1], out.shape[-1]} != {n_cols} or n_cols % group:
        raise ValueError(
            f"weights {weights.shape} in groups of {group} for rows of {n_cols} values, to rows "
            f"of {out.shape[-1]}"
        )
    if shares_at + taps * (n_cols // group) > shares.shape[-1]:
        raise ValueError(f"{taps} taps of {n_cols // group} groups in rows of {shares.shape[-1]}")
    args = {
        "x": x, "n_cols": n_cols, "weights": weights, "shares": shares,
        "shares_stride": shares.shape[-1], "shares_at": shares_at, "sequences": sequences,
        "out": out,
    }  # fmt: skip
    grid = (-(-n_cols // COLUMNS), Per(SEQUENCES))
    defines = [f"TAPS={taps}", f"GROUP={group}"]
    tape.add("rows/dynamic_conv.cl", "dynamic_conv", defines, args, grid)
