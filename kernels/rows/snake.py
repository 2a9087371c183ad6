"""SnakeBeta, an activation of vocoders (snake.cl; https://arxiv.org/abs/2206.04658)."""

from __future__ import annotations

from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.gather import COLUMNS


def snake(tape: Tape, x: Tensor, alpha: Tensor, beta: Tensor, out: Tensor) -> None:
    """out[t, c] = x[t, c] + beta[c] sin(alpha[c] x[t, c])^2; alpha, beta: float32 [n_cols]; out may
    be x."""
    n_cols = x.shape[-1]
    if {alpha.shape[-1], beta.shape[-1], out.shape[-1]} != {n_cols}:
        raise ValueError(
            f"snake of {n_cols} columns with {alpha.shape[-1]} and {beta.shape[-1]} numbers, to "
            f"rows of {out.shape[-1]}"
        )
    args = {"x": x, "n_cols": n_cols, "alpha": alpha, "beta": beta, "out": out}
    tape.add("rows/snake.cl", "snake", [], args, (-(-n_cols // COLUMNS), Per(TOKENS)))
