"""Token embeddings: rows of a packed matrix (embed.cl)."""

from __future__ import annotations

import numpy as np

from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.packing import BLOCK
from gguf_serve.kernels.quantization.weights import Matrix


def embed(
    tape: Tape,
    w: Matrix,
    ids: Tensor,
    out: Tensor,
    scale: float = 1.0,
    *,
    add: bool = False,
    times: int = 1,
    media: Tensor | None = None,
    tokens_only: bool = False,
) -> None:
    """out[t] (+)= scale * w[ids[t]], float32 [n, n_cols]; ``times`` rows for each token.

    With ``media``, float32 [rows, n_cols or more], the id -1 - r stands for its row r, which is
    not scaled; with ``tokens_only`` there are zeros where an id is negative.
    """
    if w.paired or out.shape[-1] != w.n_cols:
        raise ValueError(f"embedding of {w.n_cols} columns into rows of {out.shape[-1]}")
    defines = [*w.defines, *["ADD"] * add, *["SLAB"] * bool(w.slabs)]
    defines += ["MEDIA"] * (media is not None) + ["TOKENS_ONLY"] * tokens_only
    for row, part in w.parts:
        args = [
            part.buffer, np.uint64(part.scales_at), np.int32(w.n_blocks), np.int32(w.n_cols),
            ids.buffer, np.float32(scale), *_media_args(media), out.buffer,
            *([np.int32(row), np.int32(part.n_rows)] if w.slabs else []),
        ]  # fmt: skip
        grid = (-(-w.n_cols // BLOCK), Per(TOKENS, 1, times))
        tape.add("matrix/embed.cl", "embed", defines, args, grid)


def deepstack(tape: Tape, w: Matrix, ids: Tensor, media: Tensor, at: int, out: Tensor) -> None:
    """out[t] += media[r, at:] where ids[t] is -1 - r; ``w`` is the matrix of ``embed``."""
    n_cols = out.shape[-1]
    if at + n_cols > media.shape[-1]:
        raise ValueError(f"values {at} to {at + n_cols} of rows of {media.shape[-1]}")
    args = [ids.buffer, *_media_args(media), np.int32(at), np.int32(n_cols), out.buffer]
    tape.add("matrix/embed.cl", "deepstack", [*w.defines, "MEDIA"], args, (n_cols, Per(TOKENS)))


def _media_args(media: Tensor | None) -> list[object]:
    return [] if media is None else [media.buffer, np.int32(media.shape[-1])]
