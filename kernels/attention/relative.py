"""Attention whose scores have a term for the distance of query and key (relative.cl)."""

from __future__ import annotations

from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor


def relative_attention(
    tape: Tape,
    q: Tensor,
    p: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    ranges: Tensor,
    out: Tensor,
    *,
    head: int,
    zero: int,
    scale: float,
    softcap: float = 0.0,
) -> None:
    """out[i] = softmax(scale * (q[i] k[j] + p[i] table[zero + i - j])) v[j] by heads, where j goes
    from ranges[i, 0] to before ranges[i, 1].

    All rows are float32 [n, heads * head], ranges int32 [n, 2]; softcap: of the scores, 0 for none.
    """
    width = out.shape[-1]
    if head % 16 or width % head:
        raise ValueError(f"heads of {head} values, not of a multiple of 16, in rows of {width}")
    if any(rows.shape[-1] != width for rows in (q, p, k, v, table)):
        raise ValueError(f"rows of other widths than the result's {width}")
    args = {
        "q": q, "p": p, "k": k, "v": v, "table": table, "zero": zero, "scale": scale,
        "softcap": softcap or None, "ranges": ranges, "out": out,
    }  # fmt: skip
    grid = (width // head, Per(TOKENS))
    tape.add("attention/relative.cl", "relative_attention", [f"HD={head}"], args, grid)
