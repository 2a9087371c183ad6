"""Which kernel is taken for which work, and that tables of kernels are whole."""

from __future__ import annotations

from dataclasses import fields

import pytest
from variants import gpu, processor

from gguf_serve.kernels.attention import attention
from gguf_serve.kernels.attention.attention import Heads
from gguf_serve.kernels.matrix import matmul
from gguf_serve.kernels.matrix.matmul import Product
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.sources import SOURCES
from gguf_serve.kernels.opencl.tape import TOKENS, Per
from gguf_serve.kernels.opencl.tuning import Tuning, choices
from gguf_serve.kernels.opencl.variant import (
    Layout,
    Variant,
    can_quantize,
    choose,
    on_cpu,
    on_gpu,
    takes,
    tuned_sizes,
)
from gguf_serve.kernels.quantization.quants import by_name
from gguf_serve.kernels.quantization.weights import Matrix

CPU, GPU, DOTS = processor(()), gpu(), gpu(["SHORTS_DP2A"])
NVIDIA, AMD, INTEL = gpu(["MMA_PTX_8"]), gpu(["MMA_MFMA"]), gpu(["MMA_DPAS"])  # by what tiles have
TABLES = (*matmul.VARIANTS, *attention.FUSED)
MATRIX = Matrix(None, by_name("Q4_K"), 1024, 512, 0, 0)


def lay_out(device: Device, task: int) -> Layout:
    return Layout([], (task,))


FEW = Variant("few.cl", on_gpu, lay_out, lambda n: n < 8, tuned=("slices",))
MANY = Variant("many.cl", on_gpu, lay_out, quantizes=True)
ROWS = (
    FEW, MANY,
    Variant("cpu.cl", on_cpu, lay_out, lambda n: n > 1, tuned=("ranges",), forms=("bytes",)),
)  # fmt: skip


def test_the_first_row_that_fits_is_taken() -> None:
    assert choose(ROWS, GPU, 7) is FEW
    assert choose(ROWS, GPU, 8) is MANY
    assert choose(ROWS, CPU, 2).source == "cpu.cl"
    with pytest.raises(ValueError, match=r"no kernel for 1 on none \(simd\)"):
        choose(ROWS, CPU, 1)


def test_what_a_device_s_rows_have_in_common() -> None:
    assert not can_quantize(ROWS, GPU)
    assert can_quantize(ROWS[1:], GPU)
    assert tuned_sizes(ROWS, GPU) == ["slices"]
    assert tuned_sizes(ROWS, CPU) == ["ranges"]
    assert takes(ROWS, CPU, "bytes")
    assert not takes(ROWS, GPU, "bytes")


@pytest.mark.parametrize("variant", [*TABLES, attention.PLAIN], ids=lambda v: v.source)
def test_a_row_s_source_and_sizes_are_there(variant: Variant[object]) -> None:
    assert (SOURCES / variant.source).exists()
    assert all(len(choices(name)) > 1 for name in variant.tuned)


def test_every_size_belongs_to_a_row() -> None:
    tuned = {name for variant in TABLES for name in variant.tuned}
    assert tuned == {field.name for field in fields(Tuning)}
    assert all(getattr(Tuning(), name) in choices(name) for name in tuned)


@pytest.mark.parametrize(
    ("device", "tile", "form", "source", "defines"),
    [
        (CPU, 1, "codes", "matmul_simd", ["NT=1", "PREFETCH_BYTES=6144"]),
        (CPU, 32, "codes", "matmul_simd", ["NT=32", "PREFETCH_BYTES=6144"]),
        (CPU, 32, "spans", "matmul_simd", ["NT=128", "PREFETCH_BYTES=6144"]),
        (CPU, 32, "bytes", "matmul_simd", ["NT=64", "PREFETCH_BYTES=6144"]),
        (CPU, 8, "bytes", "matmul_simd", ["NT=8", "PREFETCH_BYTES=6144"]),
        (GPU, 8, "codes", "matvec_simt", ["NT=8", "SLICES=8"]),
        (DOTS, 8, "codes", "matvec_simt", ["SHORTS_DP2A", "NT=8", "SLICES=8"]),
        (DOTS, 8, "floats", "matvec_simt", ["NT=8", "SLICES=8"]),
        (GPU, 32, "codes", "matmul_simt", []),
        (NVIDIA, 8, "codes", "matvec_simt", ["NT=8", "SLICES=8"]),
        (NVIDIA, 32, "floats", "matmul_simt", []),
        (NVIDIA, 32, "codes", "matmul_mma", ["MMA_PTX_8", "NT=64", "ITEMS=128", "TT=2"]),
        (AMD, 32, "codes", "matmul_mma", ["MMA_MFMA", "NT=64", "ITEMS=128", "TT=4"]),
        (INTEL, 32, "codes", "matmul_mma", ["MMA_DPAS", "NT=64", "ITEMS=128", "TT=1"]),
    ],
)
def test_products(
    device: Device, tile: int, form: matmul.Form, source: str, defines: list[str]
) -> None:
    product = Product(MATRIX, form, tile, TOKENS)
    variant = choose(matmul.VARIANTS, device, product)
    assert variant.source == f"matrix/{source}.cl"
    assert variant.lay_out(device, product).defines == defines


def test_a_product_of_one_token_has_no_tiles() -> None:
    product = Product(MATRIX, "codes", 1, TOKENS)
    (variant,) = (v for v in matmul.VARIANTS if v.devices(CPU))
    assert variant.lay_out(CPU, product).grid == (64, 1)  # all units: fewer than the cores' shares


@pytest.mark.parametrize(
    ("device", "split", "layout"),
    [
        (CPU, False, Layout(["G=4"], (2, Per(2)))),
        (CPU, True, Layout(["G=4"], (Per(3), 2, Per(2)))),
        (GPU, False, Layout(["G=4", "WG=128"], (8 * 128, Per(2)), (128, 1))),
        (GPU, True, Layout(["G=4", "WG=128"], (Per(3, 1, 128), 8, Per(2)), (128, 1, 1))),
    ],
)
def test_attention(device: Device, split: bool, layout: Layout) -> None:
    heads = Heads(8, 2, split=split)
    assert choose(attention.FUSED, device, heads).lay_out(device, heads) == layout
