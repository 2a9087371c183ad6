"""Rows picked by lists of rows, side by side or summed with weights (gather.cl)."""

from __future__ import annotations

from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor

COLUMNS = 32  # per work-item


def gather(tape: Tape, x: Tensor, index: Tensor, out: Tensor, *, by_channel: bool = False) -> None:
    """out[t, j * n_cols + c] = x[index[t, j], c]; index: int32 [n, taps], negative: zeros.

    x: float32 [rows, n_cols]; out: float32 [n, taps * n_cols]. ``by_channel``: the value goes
    to out[t, c * taps + j] instead.
    """
    n_cols, taps = x.shape[-1], index.shape[1]
    if out.shape[-1] != n_cols * taps:
        raise ValueError(f"{taps} rows of {n_cols} values in rows of {out.shape[-1]}")
    args = {"x": x, "n_cols": n_cols, "index": index, "out": out}
    grid = (-(-n_cols // COLUMNS), taps, Per(TOKENS))
    defines = [f"TAPS={taps}", *(["INTERLEAVED"] if by_channel else [])]
    tape.add("rows/gather.cl", "gather", defines, args, grid)


def mix(
    tape: Tape,
    x: Tensor,
    index: Tensor,
    out: Tensor,
    *,
    weights: Tensor | None = None,
    add: bool = False,
    bounds: tuple[float, float] | None = None,
) -> None:
    """out[t] (+)= sum_j w x[index[t, j]], kept within ``bounds``; index: int32 [n, taps].

    weights: float32 [taps, n_cols], w = weights[j, c]; or of index's shape, w = weights[t, j].
    """
    n_cols, taps = x.shape[-1], index.shape[1]
    if out.shape[-1] != n_cols:
        raise ValueError(f"rows of {n_cols} values mixed into rows of {out.shape[-1]}")
    defines = [f"TAPS={taps}", *(["ADD"] if add else [])]
    if weights is not None:
        if weights.shape not in ((taps, n_cols), index.shape):
            raise ValueError(f"weights {weights.shape} for {index.shape} rows of {n_cols} values")
        defines.append("BY_CHANNEL" if weights.shape == (taps, n_cols) else "BY_ROW")
    low, high = bounds or (None, None)
    args = {
        "x": x, "n_cols": n_cols, "index": index, "weights": weights, "low": low, "high": high,
        "out": out,
    }  # fmt: skip
    tape.add("rows/gather.cl", "mix_rows", defines, args, (-(-n_cols // COLUMNS), Per(TOKENS)))
