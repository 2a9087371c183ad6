"""Rows between two others (lerp.cl), as RWKV's token shift has them."""

from __future__ import annotations

from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Columns, Tensor
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.quantization.packing import BLOCK
from gguf_serve.kernels.rows.norm import quantize


def lerp(
    tape: Tape,
    x: Columns,
    y: Columns,
    out: Activations,
    *,
    by: Tensor | None = None,
    rows: Columns | None = None,
) -> None:
    """out[t] = x[t] + (y[t] - x[t]) * (by + rows[t]); of the two shares one may be missing.

    by: float32 [n_cols], n_cols a multiple of 32; out.values may be x or y.
    """
    if out.n_cols % BLOCK:
        raise ValueError(f"rows of {out.n_cols} columns, not a multiple of {BLOCK}")
    if by is None and rows is None:
        raise ValueError("a lerp without a share, expected one by column, by value, or both")
    args: dict[str, object] = {
        **x.args("x"), **y.args("y"), "by": by, "n_cols": out.n_cols, "out": out.values,
    }  # fmt: skip
    if rows is not None:
        args |= rows.args("rows")
    defines: list[str] = []
    if out.values is None:
        args |= {"out_q": out.codes, "out_d": out.scales}
        defines = out.code_defines
    tape.add("rows/lerp.cl", "lerp", defines, args, (out.n_cols // BLOCK, Per(TOKENS)))
    if out.values is not None and out.quantized:
        quantize(tape, out)
