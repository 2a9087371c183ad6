"""AltUp: streams beside the one that layers read, predicted and corrected (altup.cl)."""

from __future__ import annotations

from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.hyper import LANES, check_streams
from gguf_serve.kernels.rows.norm import SIMT_GROUP


def predict(
    tape: Tape, streams: Tensor, logits: Tensor, factors: Tensor, out: Tensor, active: Tensor
) -> None:
    """out, float32 [n, count * n_cols], from streams of the same shape, which it may be; the first
    stream of it is ``active``, [n, n_cols], too. logits: [n, count]; factors: [count^2, count]."""
    count = logits.shape[1]
    _check(streams, active, count, factors, (count * count, count))
    args = {
        "streams": streams, "logits": logits, "factors": factors, "n_cols": active.shape[1],
        "predictions": out, "active": active,
    }  # fmt: skip
    tape.add("rows/altup.cl", "predict", _defines(count), args, _grid(active))


def correct(
    tape: Tape,
    predictions: Tensor,
    activated: Tensor,
    logits: Tensor,
    factors: Tensor,
    scale: Tensor,
    out: Tensor,
    scaled: Tensor,
) -> None:
    """out, float32 [n, count * n_cols], from predictions of the same shape, which it may be, and
    what the first of them has become; ``scaled``, [n, n_cols]: its first stream times a scale,
    [n_cols]. factors: [count, count]."""
    count = logits.shape[1]
    _check(predictions, activated, count, factors, (count, count))
    if scale.shape != (activated.shape[1],):
        raise ValueError(f"a scale of {scale.shape} for {activated.shape[1]} columns")
    args = {
        "predictions": predictions, "activated": activated, "logits": logits, "factors": factors,
        "scale": scale, "n_cols": activated.shape[1], "streams": out, "scaled": scaled,
    }  # fmt: skip
    tape.add("rows/altup.cl", "correct", _defines(count), args, _grid(activated))


def add_others(tape: Tape, y: Tensor, count: int, streams: Tensor) -> None:
    """Add y, float32 [n, n_cols], to all streams but the first."""
    check_streams(streams, y.shape[1], count)
    args = {"y": y, "n_cols": y.shape[1], "streams": streams}
    tape.add("rows/altup.cl", "add_others", _defines(count), args, _grid(y))


def match(tape: Tape, count: int, streams: Tensor) -> None:
    """Give all streams the magnitude of the first."""
    group = tape.device.group(SIMT_GROUP)
    n_cols = streams.shape[1] // count
    check_streams(streams, n_cols, count)
    args = {"streams": streams, "n_cols": n_cols}
    grid = (Per(TOKENS, 1, group), count - 1)
    tape.add("rows/altup.cl", "match", _defines(count, group), args, grid, (group, 1))


def _defines(count: int, group: int = 1) -> list[str]:
    return [f"N={count}", f"WG={group}"]


def _check(
    streams: Tensor, row: Tensor, count: int, factors: Tensor, shape: tuple[int, int]
) -> None:
    check_streams(streams, row.shape[1], count)
    if factors.shape != shape:
        raise ValueError(f"factors of {factors.shape} for {count} streams, expected {shape}")


def _grid(x: Tensor) -> tuple[int, Per]:
    return x.shape[1] // LANES, Per(TOKENS)
