"""Device memory: a buffer with a shape and an element type."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyopencl as cl

from kernels.device import Device


@dataclass(frozen=True, slots=True)
class Tensor:
    """Row-major elements in a device buffer; the last dimension is contiguous."""

    buffer: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def empty(device: Device, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Tensor:
    """Uninitialized device memory (committed by the system when first written)."""
    kind = np.dtype(dtype)
    size = max(math.prod(shape) * kind.itemsize, 16)
    return Tensor(cl.Buffer(device.context, cl.mem_flags.READ_WRITE, size), shape, kind)


def zeros(device: Device, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Tensor:
    tensor = empty(device, shape, dtype)
    cl.enqueue_fill_buffer(
        device.queue, tensor.buffer, np.uint8(0), 0, max(tensor.n_bytes, 16)
    )
    return tensor


def upload(device: Device, array: npt.NDArray[Any]) -> Tensor:
    """A device copy of an array."""
    tensor = empty(device, array.shape, array.dtype)
    if array.size:
        write(device, tensor, array, wait=True)
    return tensor


def write(device: Device, tensor: Tensor, array: npt.NDArray[Any], *, wait: bool = False) -> None:
    """Copy ``array`` to the start of ``tensor``; without ``wait``, array must stay as it is
    until the queue has passed this point."""
    cl.enqueue_copy(
        device.queue, tensor.buffer, np.ascontiguousarray(array), is_blocking=wait
    )


def read(device: Device, tensor: Tensor, n_rows: int | None = None) -> npt.NDArray[Any]:
    """A host copy of a tensor, or of its first ``n_rows`` rows; waits for the queue."""
    shape = tensor.shape if n_rows is None else (n_rows, *tensor.shape[1:])
    array = np.empty(shape, tensor.dtype)
    if array.size:
        cl.enqueue_copy(device.queue, array, tensor.buffer, is_blocking=True)
    return array
