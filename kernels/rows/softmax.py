"""Softmax of rows (softmax.cl)."""

from __future__ import annotations

from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.norm import SIMT_GROUP


def softmax(tape: Tape, x: Tensor, out: Tensor) -> None:
    """out[t] = exp(x[t]) / their sum; float32 [n, n_cols], out may be x."""
    group = tape.device.group(SIMT_GROUP)
    args = {"x": x, "n_cols": x.shape[-1], "out": out}
    grid = (Per(TOKENS, 1, group),)
    tape.add("rows/softmax.cl", "softmax", [f"WG={group}"], args, grid, (group,))
