"""Attention of a token's stream over what it was at earlier layers (depth.cl)."""

from __future__ import annotations

from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.norm import SIMT_GROUP


def mix_depth(
    tape: Tape, bank: Tensor, n_banked: int, x: Tensor, weight: Tensor, eps: float, out: Tensor
) -> None:
    """out[t] = a softmax-weighted sum of x[t] and bank[i, t] for the first n_banked i.

    bank: float32 [checkpoints, rows, n_cols]; x, out: [n, n_cols]; weight: [n_cols].
    """
    n_cols = x.shape[1]
    if n_cols % 16 or weight.shape != (n_cols,) or bank.shape[2] != n_cols:
        raise ValueError(
            f"{n_cols} columns, weights of {weight.shape}, a bank of {bank.shape}: expected a "
            "multiple of 16, as many weights, and rows as long"
        )
    group = tape.device.group(SIMT_GROUP)
    args = {
        "bank": bank, "n_rows": bank.shape[1], "x": x, "n_cols": n_cols, "weight": weight,
        "eps": eps, "out": out,
    }  # fmt: skip
    defines = [f"BANKED={n_banked}", f"WG={group}"]
    tape.add("rows/depth.cl", "mix_depth", defines, args, (Per(TOKENS, 1, group),), (group,))
