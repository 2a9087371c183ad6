"""Gates of n-gram embeddings (ngram.cl)."""

from __future__ import annotations

from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.norm import SIMT_GROUP


def gate_ngrams(
    tape: Tape, key: Tensor, query: Tensor, value: Tensor, count: int, out: Tensor
) -> None:
    """out[t, h] = value[t] times a gate from key[t, h] and query[t, h], for ``count`` streams h.

    key, query, out: float32 [n, count * n_cols]; value: [n, n_cols].
    """
    n_cols = value.shape[1]
    if n_cols % 16 or key.shape[1] != count * n_cols:
        raise ValueError(f"{count} keys of {n_cols} values in rows of {key.shape[1]}")
    group = tape.device.group(SIMT_GROUP)
    args = {"key": key, "query": query, "value": value, "n_cols": n_cols, "out": out}
    grid = (Per(TOKENS, 1, group), count)
    tape.add("rows/ngram.cl", "gate_ngrams", [f"WG={group}"], args, grid, (group, 1))
