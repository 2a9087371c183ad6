"""Token embeddings: rows of a packed matrix (embed.cl)."""

from __future__ import annotations

from gguf_serve.kernels.opencl.signature import Arguments
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
    padded: bool = False,
) -> None:
    """out[t] (+)= scale * w[ids[t]], float32 [n, n_cols]; ``times`` rows for each token.

    With ``media``, float32 [rows, n_cols or more], the id -1 - r stands for its row r, which is
    not scaled; with ``tokens_only`` there are zeros where an id is negative, if ``padded`` what
    the id 0 has.
    """
    if w.paired or out.shape[-1] != w.n_cols:
        raise ValueError(f"embedding of {w.n_cols} columns into rows of {out.shape[-1]}")
    flags = {"ADD": add, "TOKENS_ONLY": tokens_only, "PADDED": padded}
    defines = [*w.defines, *(name for name, on in flags.items() if on)]
    for row, part in w.parts:
        args: dict[str, object] = {
            "w": part, "scales_at": part.scales_at, "n_blocks": w.n_blocks, "n_cols": w.n_cols,
            "ids": ids, "scale": scale, "out": out, **_media_args(media),
        }  # fmt: skip
        if w.slabs:
            args |= {"first_row": row, "n_rows": part.n_rows}
        grid = (-(-w.n_cols // BLOCK), Per(TOKENS, 1, times))
        tape.add("matrix/embed.cl", "embed", defines, args, grid)


def deepstack(tape: Tape, w: Matrix, ids: Tensor, media: Tensor, at: int, out: Tensor) -> None:
    """out[t] += media[r, at:] where ids[t] is -1 - r; ``w`` is the matrix of ``embed``."""
    n_cols = out.shape[-1]
    if at + n_cols > media.shape[-1]:
        raise ValueError(f"values {at} to {at + n_cols} of rows of {media.shape[-1]}")
    args = {"ids": ids, **_media_args(media), "at": at, "n_cols": n_cols, "out": out}
    tape.add("matrix/embed.cl", "deepstack", [*w.defines, "MEDIA"], args, (n_cols, Per(TOKENS)))


def _media_args(media: Tensor | None) -> Arguments:
    return {} if media is None else {"media": media, "media_cols": media.shape[-1]}
