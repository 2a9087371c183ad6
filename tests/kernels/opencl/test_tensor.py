"""Device memory: what is written is what is read."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tensor import (
    Region,
    empty,
    read,
    read_row,
    regions,
    upload,
    write,
    zeros,
)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.uint8])
def test_upload_and_read(device: Device, dtype: type) -> None:
    array = np.random.default_rng(1).integers(0, 200, (5, 3, 2)).astype(dtype)
    tensor = upload(device, array)
    assert (tensor.shape, tensor.dtype, tensor.n_bytes) == (array.shape, array.dtype, array.nbytes)
    result = read(tensor, None, device.queue)
    assert result.dtype == array.dtype
    assert np.array_equal(result, array)
    assert np.array_equal(read(tensor, 2, device.queue), array[:2])
    assert np.array_equal(read_row(tensor, 3, device.queue), array[3])


def test_arrays_that_are_not_contiguous(device: Device) -> None:
    array = np.arange(24, dtype=np.int32).reshape(4, 6)[:, ::2].T
    assert np.array_equal(read(upload(device, array), None, device.queue), array)


def test_write_goes_to_the_start(device: Device) -> None:
    tensor = upload(device, np.arange(8, dtype=np.int32))
    write(device, tensor, np.array([-1, -2, -3], np.int32))
    assert read(tensor, None, device.queue).tolist() == [-1, -2, -3, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("shape", [(7,), (3, 5), (1,)])
def test_zeros(device: Device, shape: tuple[int, ...]) -> None:
    tensor = zeros(device, shape)
    assert np.array_equal(read(tensor, None, device.queue), np.zeros(shape, np.float32))


def test_nothing(device: Device) -> None:
    for tensor in (empty(device, (0, 4)), upload(device, np.zeros((0, 4), np.float32))):
        assert tensor.n_bytes == 0
        assert read(tensor, None, device.queue).shape == (0, 4)
    assert read(empty(device, (3, 4)), 0, device.queue).shape == (0, 4)


def test_regions_are_views_of_one_memory(device: Device) -> None:
    parts = [Region("a", (3,)), Region("b", (300, 2)), Region("c", (2, 2))]
    memory, host, arrays, tensors = regions(device, parts)
    arrays["a"][:] = 1, 2, 3
    arrays["b"][:] = np.arange(600).reshape(300, 2)
    arrays["c"][1] = 8, 9
    write(device, memory, host, wait=True)
    assert list(arrays) == list(tensors) == ["a", "b", "c"]
    for name, array in arrays.items():
        assert tensors[name].shape == array.shape
        assert np.array_equal(read(tensors[name], None, device.queue), array)
    assert read(tensors["c"], None, device.queue).tolist() == [[0, 0], [8, 9]]


def test_zeros_are_there_before_their_memory_goes(device: Device) -> None:
    """A driver that still fills memory which is no longer there ends the process."""
    for _ in range(50):
        assert zeros(device, (3 << 20,)).n_bytes == 12 << 20
    device.finish()
