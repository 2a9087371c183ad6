"""Watching for values that are NaN or infinite between a step's launches (watch.cl)."""

from __future__ import annotations

import numpy as np

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, read, upload, write
from gguf_serve.kernels.rows.norm import SIMT_GROUP

NEVER = np.iinfo(np.int32).max


def mark_room(device: Device) -> Tensor:
    """int32 [1] for the least mark; none so far."""
    return upload(device, np.array([NEVER], np.int32))


def watch(tape: Tape, x: Tensor, mark: int, first: Tensor) -> None:
    """first = min(first, mark) if a value of the step's rows of x, float32 [n, n_cols], is not
    finite."""
    group = tape.device.group(SIMT_GROUP)
    n_cols = x.shape[1]
    args = {"x": x, "n_cols": n_cols, "mark": mark, "first": first}
    grid = (Per(TOKENS, 1, group),)
    tape.add("rows/watch.cl", "watch", [f"WG={group}"], args, grid, (group,))


def take_mark(device: Device, first: Tensor) -> int | None:
    """The least mark since the last call; None: all values were finite. Waits for the device."""
    found = int(read(first, None, device.queue)[0])
    write(device, first, np.array([NEVER], np.int32), wait=True)
    return None if found == NEVER else found
