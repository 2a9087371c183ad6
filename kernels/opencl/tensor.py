"""Device memory: a buffer with a shape and an element type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyopencl as cl
from msgspec import Struct

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.memory import ALIGNMENT as BUFFER_ALIGNMENT
from gguf_serve.kernels.opencl.platforms import DeviceError
from gguf_serve.kernels.opencl.signature import Arguments


class Tensor(Struct, frozen=True):
    """Row-major elements in a device buffer; the last dimension is contiguous."""

    buffer: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Columns(Struct, frozen=True):
    """A part of the rows of a tensor, from column ``at`` on."""

    rows: Tensor
    at: int = 0

    def args(self, name: str) -> Arguments:
        """As a kernel's parameters ``name``, name_stride and name_at."""
        return {name: self.rows, f"{name}_stride": self.rows.shape[-1], f"{name}_at": self.at}


def empty(
    device: Device,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike = np.float32,
    *,
    gradual: bool = False,
) -> Tensor:
    """Uninitialized device memory (committed by the system when first written). ``gradual``: it
    is filled little by little, see ``HugePages.take``."""
    kind = np.dtype(dtype)
    buffer = allocate(device, math.prod(shape) * kind.itemsize, gradual=gradual)
    return Tensor(buffer, shape, kind)


def allocate(device: Device, n_bytes: int, *, gradual: bool = False) -> Any:
    """A device buffer; DeviceError says how much could not be had."""
    device.usage.n_bytes += _granted(device, n_bytes)
    limit = device.max_allocation
    if n_bytes > limit:
        raise DeviceError(
            f"{device.info.name}: a buffer of {n_bytes >> 20} MiB is needed, at most "
            f"{limit >> 20} MiB can be allocated at once"
        )
    if device.is_meta:
        return None
    flags = cl.mem_flags.READ_WRITE
    try:
        if device.huge_pages is None:
            return cl.Buffer(device.context, flags, max(n_bytes, 16))
        size = max(n_bytes, 16)
        memory = device.huge_pages.take(size, gradual=gradual)[:size]
        return cl.Buffer(device.context, flags | cl.mem_flags.USE_HOST_PTR, hostbuf=memory)
    except (MemoryError, cl.MemoryError, cl.RuntimeError) as error:
        raise DeviceError(
            f"{device.info.name}: no memory for a buffer of {n_bytes >> 20} MiB ({error})"
        ) from error


def from_element(tensor: Tensor, first: int) -> Tensor:
    """The elements from one on, which must be where a sub-buffer may begin."""
    if first == 0 or tensor.buffer is None:  # as on a meta device
        return tensor
    at = first * tensor.dtype.itemsize
    buffer = tensor.buffer.get_sub_region(at, tensor.n_bytes - at)
    return Tensor(buffer, (math.prod(tensor.shape) - first,), tensor.dtype)


def _granted(device: Device, n_bytes: int) -> int:
    """Bytes that a buffer takes, with what is lost to alignment."""
    unit = 16 if device.huge_pages is None else BUFFER_ALIGNMENT
    return max(-(-n_bytes // unit), 1) * unit


def zeros(device: Device, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Tensor:
    tensor = empty(device, shape, dtype)
    fill_zero(device, tensor.buffer, max(tensor.n_bytes, 16))
    return tensor


def fill_zero(device: Device, buffer: Any, n_bytes: int) -> None:
    """Enqueue zeros for the first bytes of a buffer; wait for them where the memory is the host's,
    which goes back to the system with the buffer, whatever is enqueued."""
    if not device.is_meta:
        event = cl.enqueue_fill_buffer(device.queue, buffer, np.zeros(1, np.uint8), 0, n_bytes)
        if works_in_place(device):
            event.wait()


def upload(device: Device, array: npt.NDArray[Any]) -> Tensor:
    """A device copy of an array."""
    tensor = empty(device, array.shape, array.dtype)
    if array.size:
        write(device, tensor, array, wait=True)
    return tensor


def write(device: Device, tensor: Tensor, array: npt.NDArray[Any], *, wait: bool = False) -> None:
    """Copy ``array`` to the start of ``tensor``; without ``wait``, array must stay as it is
    until the queue has passed this point."""
    if not device.is_meta:
        cl.enqueue_copy(device.queue, tensor.buffer, np.ascontiguousarray(array), is_blocking=wait)


def read(tensor: Tensor, n_rows: int | None, queue: cl.CommandQueue) -> npt.NDArray[Any]:
    """A host copy of the first ``n_rows`` rows of a tensor (None: all); waits for the queue."""
    shape = tensor.shape if n_rows is None else (n_rows, *tensor.shape[1:])
    array = np.empty(shape, tensor.dtype)
    if array.size:
        cl.enqueue_copy(queue, array, tensor.buffer, is_blocking=True)
    else:
        queue.finish()
    return array


def read_row(tensor: Tensor, index: int, queue: cl.CommandQueue) -> npt.NDArray[Any]:
    """A host copy of one row; waits for the queue."""
    array: npt.NDArray[Any] = read_rows(tensor, range(index, index + 1), queue)[0]
    return array


def read_rows(tensor: Tensor, rows: range, queue: cl.CommandQueue) -> npt.NDArray[Any]:
    """A host copy of consecutive rows; waits for the queue."""
    array = np.empty((len(rows), *tensor.shape[1:]), tensor.dtype)
    if array.size:
        at = rows.start * (array.nbytes // len(rows))
        cl.enqueue_copy(queue, array, tensor.buffer, src_offset=at, is_blocking=True)
    return array


def works_in_place(device: Device) -> bool:
    """Whether buffers are cut from the host's memory and used there: what is written to it
    while the queue is empty needs no copy."""
    return device.huge_pages is not None and not device.is_meta


class Region(Struct, frozen=True):
    """A named part of int32 memory that is written as a whole."""

    name: str
    shape: tuple[int, ...]


ALIGNMENT = 1024  # bytes; more than any device asks of a sub-buffer's origin


def regions(
    device: Device, parts: Sequence[Region]
) -> tuple[Tensor, npt.NDArray[np.int32], dict[str, npt.NDArray[np.int32]], dict[str, Tensor]]:
    """int32 memory in parts: the whole tensor, its host copy, and views of both by name.

    The copy is the memory itself where the device uses the host's (``works_in_place``).
    """
    sizes = [-(-math.prod(part.shape) * 4 // ALIGNMENT) * ALIGNMENT for part in parts]
    memory = empty(device, (sum(sizes) // 4,), np.int32)
    host = (
        memory.buffer.hostbuf.view(np.int32)
        if works_in_place(device)
        else np.zeros(memory.shape, np.int32)
    )
    arrays, tensors, offset = {}, {}, 0
    for part, size in zip(parts, sizes, strict=True):
        n = math.prod(part.shape)
        arrays[part.name] = host[offset // 4 : offset // 4 + n].reshape(part.shape)
        sub = None if device.is_meta else memory.buffer.get_sub_region(offset, size)
        tensors[part.name] = Tensor(sub, part.shape, np.dtype(np.int32))
        offset += size
    return memory, host, arrays, tensors
