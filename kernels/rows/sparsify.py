"""Sparse activations: what stands out of a row (sparsify.cl)."""

from __future__ import annotations

from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.norm import SIMT_GROUP


def sparsify(
    tape: Tape, x: Tensor, n_cols: int, cutoff: float, *, offset: int = 0, sample: bool = False
) -> None:
    """x[t] = max(x[t] - mean - cutoff * deviation, 0), of n_cols values from ``offset`` on.

    ``sample``: the deviation is a sample's, with n_cols - 1 for n_cols.
    """
    if n_cols % 16:
        raise ValueError(f"{n_cols} values, not a multiple of 16")
    group = tape.device.group(SIMT_GROUP)
    args = {
        "x": x, "n_cols": n_cols, "stride": x.shape[1], "offset": offset, "cutoff": cutoff,
        "missing": int(sample),
    }  # fmt: skip
    grid = (Per(TOKENS, 1, group),)
    tape.add("rows/sparsify.cl", "sparsify", [f"WG={group}"], args, grid, (group,))
