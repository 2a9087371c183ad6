"""The memory of the KV cache: sizes, element types, and copies of whole pages."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from msgspec.structs import replace
from paged import poisoned_pages, stored_heads, stored_pages, write_heads

from gguf_serve.kernels.attention.kv import KV_TYPES, PAGE, SLABS, KVPages, KVShape
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import DeviceError
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import works_in_place, write

HADAMARD = np.array([[(-1) ** (i & j).bit_count() for i in range(32)] for j in range(32)])
HADAMARD = (HADAMARD / np.sqrt(32)).astype(np.float32)
SHAPES = [KVShape(2, 64, 64), KVShape(1, 80, 40)]


def test_bytes_of_a_page() -> None:
    assert KVShape(2, 64, 48).page_bytes("f32", "f16") == (PAGE * 2 * 64 * 4, PAGE * 2 * 48 * 2)
    assert KVShape(3, 64, 1).page_bytes("bf16", "f16") == (PAGE * 3 * 64 * 2, PAGE * 3 * 16 * 2)
    assert KVShape(1, 80, 40).page_bytes("q8_0", "q4_0") == (PAGE * 3 * 34, PAGE * 2 * 18)
    assert KVShape(1, 80, 32, block=4).page_bytes("q8_0", "f32") == (8 * 3 * 34, PAGE * 32 * 4)


@pytest.mark.parametrize(("type_k", "type_v"), [("f16", "f32"), ("q5_1", "iq4_nl")])
def test_types_and_bytes(device: Device, type_k: str, type_v: str) -> None:
    pages = KVPages(device, SHAPES, 5, type_k, type_v)
    assert pages.n_bytes == sum(5 * sum(shape.page_bytes(type_k, type_v)) for shape in SHAPES)
    for layer in pages.layers:
        for pages_of in (layer.k, layer.v):
            (slab,) = pages_of.slabs
            assert slab.buffer.size == pages_of.n_bytes
        assert layer.defines == [f"K_TYPE=KV_{type_k.upper()}", f"V_TYPE=KV_{type_v.upper()}"]


@pytest.mark.parametrize("name", [name for name in KV_TYPES if "f" not in name])
def test_blocks_are_ggmls(device: Device, programs: Programs, name: str) -> None:
    """V as the gguf package quantizes it, bit for bit; K after a rotation. The package cannot
    quantize IQ4_NL, which has to be better than Q4_0."""
    rng = np.random.default_rng(1)
    shape, slots = KVShape(2, 96, 96), np.array([70, 5, 31], np.int32)
    k, v = rng.standard_normal((2, 3, 2, 96), dtype=np.float32)
    v[0, 1, :32], v[2, 0, 3] = 0, -9  # a block without a scale, and an outlier
    layer = poisoned_pages(device, [shape], 3, name, name).layers[0]
    write_heads(device, programs, layer, k, v, slots)
    stored_k, stored_v = stored_heads(device, layer, slots)
    kind = GGMLQuantizationType["Q4_0" if name == "iq4_nl" else name.upper()]
    expected_k, expected_v = (
        dequantize(quantize(x, kind), kind) for x in ((k.reshape(-1, 32) @ HADAMARD), v)
    )
    error = np.square(stored_k.reshape(-1, 32) @ HADAMARD - k.reshape(-1, 32)).sum()
    assert error < 1.01 * np.square(expected_k @ HADAMARD - k.reshape(-1, 32)).sum()
    if name == "iq4_nl":
        assert np.square(stored_v - v).sum() < 0.9 * np.square(expected_v - v).sum()
    else:
        assert np.array_equal(stored_v, expected_v)


def test_an_outlier_of_k_costs_no_more_than_it_must(device: Device, programs: Programs) -> None:
    """Quantized K keeps its products with queries, though one dimension is far larger."""
    rng = np.random.default_rng(1)
    shape, slots = KVShape(1, 64, 64), np.arange(8, dtype=np.int32)
    k, q = rng.standard_normal((2, 8, 1, 64), dtype=np.float32)
    k[..., 7] += 40
    layer = poisoned_pages(device, [shape], 1, "q8_0", "f16").layers[0]
    rotated_q = write_heads(device, programs, layer, k, k, slots, q)
    stored, _ = stored_heads(device, layer, slots)
    error = np.abs((rotated_q * stored).sum(-1) - (q * k).sum(-1)).max()
    plain = dequantize(quantize(k, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0)
    assert error < 0.5 * np.abs((q * (plain - k)).sum(-1)).max()


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_first_page_takes_no_huge_ones(device: Device) -> None:
    if not works_in_place(device):
        pytest.skip("its memory is not this process's")
    pages = KVPages(device, [KVShape(3, 64, 64)] * 16, 512, "f16", "f16")
    data = np.ones(pages.page_bytes, np.uint8)
    before = resident_bytes()
    for layer in range(16):
        pages.write_page(layer, 0, data)
    pages.finish()
    assert resident_bytes() - before < 8 << 20  # a huge one each would be 64 MiB


def resident_bytes() -> int:
    n_pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(n_pages) * mmap.PAGESIZE


LARGEST = max(max(shape.page_bytes("q5_0", "f32")) for shape in SHAPES)


@pytest.mark.parametrize("most", [None, 2 * LARGEST], ids=["one buffer", "slabs"])
def test_copy_of_a_page_in_every_layer(device: Device, most: int | None) -> None:
    device = device if most is None else replace(device, max_allocation=most)
    rng = np.random.default_rng(1)
    pages = KVPages(device, SHAPES, 6, "q5_0", "f32")
    kept = [kept for layer in pages.layers for kept in (layer.k, layer.v)]
    before = []
    for layer in kept:
        slabs = [rng.integers(256, size=slab.shape, dtype=np.uint8) for slab in layer.slabs]
        for slab, values in zip(layer.slabs, slabs, strict=True):
            write(device, slab, values, wait=True)
        before.append(np.concatenate(slabs))
    pages.copy_page(4, 1)
    pages.copy_page(0, 5)
    for layer, values in zip(kept, before, strict=True):
        values[1], values[5] = values[4], values[0]
        assert np.array_equal(stored_pages(device, layer), values)


def test_what_exceeds_one_allocation_lies_in_slabs(device: Device) -> None:
    """Of as many pages each, as many as the larger of K and V allows; K of 4 KiB a page."""
    small = replace(device, max_allocation=3 << 12)
    (layer,) = KVPages(small, [KVShape(1, 32, 16)], 8, "f32", "f16").layers
    assert [slab.shape[0] for slab in layer.k.slabs] == [3, 3, 2]
    assert [slab.shape[0] for slab in layer.v.slabs] == [3, 3, 2]
    assert "SLAB_PAGES=3" in layer.defines
    assert len(layer.k.arg) == SLABS
    assert layer.k.place(7) == (layer.k.slabs[2].buffer, 1 << 12)
    with pytest.raises(DeviceError, match=r"takes 0 MiB, at most 0 MiB .* 4 times .*q8_0"):
        KVPages(small, [KVShape(1, 32, 16)], 13, "f32", "f16")
    with pytest.raises(DeviceError, match="1 times as much"):
        KVPages(small, [KVShape(1, 32, 16)], 1, "f32", "f16", rings=[4])


def test_pages_of_slabs_are_read_and_written(device: Device) -> None:
    rng = np.random.default_rng(1)
    pages = KVPages(replace(device, max_allocation=2 * LARGEST), SHAPES, 6, "q5_0", "f32")
    data = rng.integers(256, size=(6, pages.page_bytes), dtype=np.uint8)
    for page in range(6):
        at = 0
        for layer in range(len(SHAPES)):
            at += pages.write_page(layer, page, data[page, at:])
    found = np.zeros_like(data)
    for page in range(6):
        at = 0
        for layer in range(len(SHAPES)):
            at += pages.read_page(layer, page, found[page, at:])
    pages.finish()
    assert np.array_equal(found, data)


@pytest.mark.parametrize("name", KV_TYPES)
def test_a_nan_stays_one(device: Device, programs: Programs, name: str) -> None:
    k, v = np.random.default_rng(2).standard_normal((2, 2, 1, 64), dtype=np.float32)
    k[1, 0, 40] = v[1, 0, 40] = np.nan
    slots = np.array([3, 4], np.int32)
    layer = poisoned_pages(device, [KVShape(1, 64, 64)], 1, name, name).layers[0]
    write_heads(device, programs, layer, k, v, slots)
    for stored in stored_heads(device, layer, slots):
        assert np.isfinite(stored[0]).all()
        assert np.isnan(stored[1, 0, 40])
