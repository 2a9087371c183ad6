"""Linear attention with a constant decay per head (lightning_*.cl)."""

from __future__ import annotations

from gguf_serve.kernels.opencl.tape import Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.recurrent.columns import recurrence


def lightning(
    tape: Tape, qkv: Tensor, decay: Tensor, head: int, sequences: Tensor, state: Tensor, out: Tensor
) -> None:
    """Over each sequence's tokens: qkv float32 [n, n_heads * 3 * head] before SiLU, decay
    [n_heads], sequences int32 [n, 4] (conv.cl), state [slots, n_heads, head, head], out
    [n, n_heads * head]."""
    n_heads = decay.shape[0]
    if head % 16 or qkv.shape[1] != 3 * n_heads * head:
        raise ValueError(f"rows of {qkv.shape[1]} for {n_heads} heads of {head}")
    args = {
        "qkv": qkv, "stride": qkv.shape[1], "decay": decay, "sequences": sequences, "state": state,
        "out": out,
    }  # fmt: skip
    recurrence(tape, "lightning", [f"HD={head}"], args, head, n_heads)
