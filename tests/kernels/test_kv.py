"""The memory of the KV cache: sizes, element types, and copies of whole pages."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.device import Device
from kernels.kv import PAGE, KVPages, KVShape
from kernels.tensor import read, write

SHAPES = [KVShape(2, 64, 64), KVShape(1, 80, 40)]


def test_sizes_of_a_page() -> None:
    assert KVShape(2, 64, 48).page_elements() == (2 * 64 * PAGE, 2 * 48 * PAGE)
    assert KVShape(1, 80, 40).head_v_padded == 48
    assert KVShape(3, 16, 1).page_elements() == (3 * 16 * PAGE, 3 * 16 * PAGE)


@pytest.mark.parametrize(("type_k", "type_v"), [("f16", "f32"), ("f32", "f16")])
def test_types_and_bytes(device: Device, type_k: str, type_v: str) -> None:
    pages = KVPages(device, SHAPES, 5, type_k, type_v)
    sizes = {"f16": 2, "f32": 4}
    expected = sum(
        5 * elements * sizes[kind]
        for shape in SHAPES
        for elements, kind in zip(shape.page_elements(), (type_k, type_v), strict=True)
    )
    assert pages.n_bytes == expected
    for layer in pages.layers:
        assert layer.k.buffer.size == layer.k.n_bytes
        assert layer.v.buffer.size == layer.v.n_bytes
        assert ("K_F16" in layer.defines, "V_F16" in layer.defines) == (
            type_k == "f16", type_v == "f16",
        )  # fmt: skip


def test_copy_of_a_page_in_every_layer(device: Device) -> None:
    rng = np.random.default_rng(1)
    pages = KVPages(device, SHAPES, 6, "f16", "f32")
    tensors = [tensor for layer in pages.layers for tensor in (layer.k, layer.v)]
    before = []
    for tensor in tensors:
        values = rng.standard_normal(tensor.shape).astype(tensor.dtype)
        write(device, tensor, values, wait=True)
        before.append(values)
    pages.copy_page(4, 1)
    pages.copy_page(0, 5)
    for tensor, values in zip(tensors, before, strict=True):
        values[1], values[5] = values[4], values[0]
        assert np.array_equal(read(tensor, None, device.queue), values)
