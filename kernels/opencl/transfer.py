"""Rows of a tensor carried from one device to another, of any vendor, through host memory, or to
and from a device of another process.

Where one of the two computes in host memory, its buffer is mapped and the rows are copied once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyopencl as cl

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tape import TOKENS, Counts
from gguf_serve.kernels.opencl.tensor import Tensor, read_rows


class Transfer:
    """The first counts[count] rows of ``x`` on ``source`` to ``y``, its like, on ``target``."""

    def __init__(
        self, source: Device, x: Tensor, target: Device, y: Tensor, count: int = TOKENS
    ) -> None:
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            raise ValueError(f"rows of {x.dtype} {x.shape} cannot go to {y.dtype} {y.shape}")
        self._source, self._x, self._target, self._y = source, x, target, y
        self._count = count
        self._row_bytes = x.n_bytes // x.shape[0]

    def run(self, counts: Counts) -> None:
        """Wait for the source's queue, and copy."""
        n_bytes = counts[self._count] * self._row_bytes
        if not n_bytes:  # of a prompt's middle no row is wanted, and nothing can be mapped
            return
        source, target = self._source.queue, self._target.queue
        if self._source.unified_memory:
            with _mapped(self._source, self._x, cl.map_flags.READ, n_bytes) as rows:
                cl.enqueue_copy(target, self._y.buffer, rows, is_blocking=True)
        elif self._target.unified_memory:
            flags = cl.map_flags.WRITE_INVALIDATE_REGION
            with _mapped(self._target, self._y, flags, n_bytes) as rows:
                cl.enqueue_copy(source, rows, self._x.buffer, is_blocking=True)
        else:
            rows = np.empty(n_bytes, np.uint8)
            cl.enqueue_copy(source, rows, self._x.buffer, is_blocking=True)
            cl.enqueue_copy(target, self._y.buffer, rows, is_blocking=True)


class Outgoing:
    """The first counts[count] rows of ``x`` to another process: ``send`` gets their bytes."""

    def __init__(
        self, device: Device, x: Tensor, send: Callable[[bytes], None], count: int = TOKENS
    ) -> None:
        self._device, self._x, self._send, self._count = device, x, send, count

    def run(self, counts: Counts) -> None:
        """Wait for the queue, and have the rows sent."""
        if n := counts[self._count]:
            self._send(read_rows(self._x, range(n), self._device.queue).tobytes())


class Incoming:
    """The first counts[count] rows of ``y`` from another process: ``receive`` waits for them."""

    def __init__(
        self, device: Device, y: Tensor, receive: Callable[[], bytes], count: int = TOKENS
    ) -> None:
        self._device, self._y, self._receive, self._count = device, y, receive, count
        self._row_bytes = y.n_bytes // y.shape[0]

    def run(self, counts: Counts) -> None:
        """Wait for the rows, and for the queue, which may still read those of before.

        Raises what ``receive`` raises, and ValueError if it gives another number of bytes.
        """
        n_bytes = counts[self._count] * self._row_bytes
        if not n_bytes:
            return
        rows = np.frombuffer(self._receive(), np.uint8)
        if rows.nbytes != n_bytes:
            raise ValueError(f"{rows.nbytes} bytes have come of rows that have {n_bytes}")
        cl.enqueue_copy(self._device.queue, self._y.buffer, rows, is_blocking=True)


@contextmanager
def _mapped(
    device: Device, tensor: Tensor, flags: cl.map_flags, n_bytes: int
) -> Iterator[npt.NDArray[Any]]:
    """The tensor's first bytes in host memory, once the queue has come to it."""
    array: Any
    array, _ = cl.enqueue_map_buffer(
        device.queue, tensor.buffer, flags, 0, (n_bytes,), np.dtype(np.uint8), is_blocking=True
    )
    try:
        yield array
    finally:
        array.base.release(device.queue)
