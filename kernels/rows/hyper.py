"""Hyper-connections: several residual streams, mixed by each token's coefficients (hyper.cl)."""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor

LANES = 16  # columns per work-item


class Mixing(Struct, frozen=True):
    """How logits become coefficients: factors before (``pre``) and after a sublayer, and a
    matrix between streams if there are logits for it.

    base: float32 [logits]; scale: float32, one for each of the three that there is.
    """

    base: Tensor
    scale: Tensor
    eps: float
    magnitude: float
    post_eps: float
    iterations: int  # of Sinkhorn's normalization


def n_coefficients(count: int) -> int:
    """Of a token with so many streams."""
    return count * (2 + count)


def coefficients(tape: Tape, logits: Tensor, mixing: Mixing, count: int, out: Tensor) -> None:
    """out: float32 [n, n_coefficients(count)] from logits: float32 [n, count * (1, 2, or 2 +
    count)]."""
    n = logits.shape[1]
    if n not in (count, 2 * count, n_coefficients(count)) or mixing.base.shape != (n,):
        raise ValueError(f"{n} logits and {mixing.base.shape} bases for {count} streams")
    args = {
        "logits": logits, "base": mixing.base, "scale": mixing.scale, "eps": mixing.eps,
        "magnitude": mixing.magnitude, "post_eps": mixing.post_eps, "out": out,
    }  # fmt: skip
    defines = [f"HC={count}", f"LOGITS={n}", f"ITERATIONS={mixing.iterations}"]
    tape.add("rows/hyper.cl", "coefficients", defines, args, (Per(TOKENS),))


def injection(tape: Tape, logits: Tensor, count: int, out: Tensor) -> None:
    """The factors after a sublayer, alone: 2 sigmoid(logits / count)."""
    args = {"logits": logits, "out": out}
    tape.add("rows/hyper.cl", "injection", [f"HC={count}"], args, (Per(TOKENS),))


def spread(tape: Tape, x: Tensor, count: int, streams: Tensor) -> None:
    """streams[t, h] = x[t], float32 [n, count * n_cols]."""
    args = {"x": x, "n_cols": x.shape[1], "streams": streams}
    tape.add("rows/hyper.cl", "spread", [f"HC={count}"], args, _grid(x, streams, count))


def reduce(tape: Tape, streams: Tensor, factors: Tensor | None, count: int, out: Tensor) -> None:
    """out[t] = sum_h pre[h] streams[t, h], or without coefficients the mean."""
    args = {"streams": streams, "coefficients": factors, "n_cols": out.shape[1], "out": out}
    defines = [f"HC={count}", *["MEAN"] * (factors is None)]
    tape.add("rows/hyper.cl", "reduce", defines, args, _grid(out, streams, count))


def distribute(
    tape: Tape, x: Tensor, factors: Tensor, count: int, streams: Tensor, *, mix: bool
) -> None:
    """streams[t, d] = post[d] x[t] + what was there, mixed or as it was."""
    args = {"x": x, "coefficients": factors, "n_cols": x.shape[1], "streams": streams}
    defines = [f"HC={count}", *["MIX"] * mix]
    tape.add("rows/hyper.cl", "distribute", defines, args, _grid(x, streams, count))


def gated_mean(tape: Tape, streams: Tensor, gate: Tensor, count: int, out: Tensor) -> None:
    """out[t] = mean_h streams[t, h] * sigmoid(gate[t, h])."""
    args = {"streams": streams, "gate": gate, "n_cols": out.shape[1], "out": out}
    tape.add("rows/hyper.cl", "gated_mean", [f"HC={count}"], args, _grid(out, streams, count))


def _grid(row: Tensor, streams: Tensor, count: int) -> tuple[int, Per]:
    """Of ``count`` streams, each of which is as long as ``row``."""
    check_streams(streams, row.shape[1], count)
    return row.shape[1] // LANES, Per(TOKENS)


def check_streams(streams: Tensor, n_cols: int, count: int) -> None:
    """ValueError unless a row of ``streams`` has so many, of ``n_cols`` values each."""
    if n_cols % LANES or streams.shape[1] != count * n_cols:
        raise ValueError(
            f"{count} streams of {n_cols} values in rows of {streams.shape[1]}, expected "
            f"{count * n_cols}, and a multiple of {LANES} for each"
        )
