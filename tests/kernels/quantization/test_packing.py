"""The bounds of integer sums hold for every row of the table of tensor types."""

from __future__ import annotations

import re

import pytest

from gguf_serve.kernels.opencl.sources import SOURCES
from gguf_serve.kernels.quantization.packing import (
    BLOCK,
    BYTE_CODE_MAX,
    CHARS,
    CODE_MAX,
    INT_MAX,
    SHORT_MAX,
    SPAN_SUM_MAX,
    Packing,
)
from gguf_serve.kernels.quantization.quants import INTEGERS_OF, SUPPORTED_TYPES, TensorType, by_name

ROWS = {
    kind.name: kind.packing
    for kind in (*map(by_name, SUPPORTED_TYPES), *INTEGERS_OF.values())
    if isinstance(kind.packing, Packing)
}
every_row = pytest.mark.parametrize("packing", ROWS.values(), ids=ROWS.keys())


@every_row
def test_a_block_s_products_fit_into_32_bits(packing: Packing) -> None:
    assert packing.code_max <= 4096
    assert BLOCK * packing.code_max * CODE_MAX <= INT_MAX
    assert packing.code_max * SPAN_SUM_MAX <= INT_MAX  # all of it in one block


@every_row
def test_codes_in_place_fit_into_32_bits(packing: Packing) -> None:
    """matmul_simd.cl with IN_PLACE: every fourth pair of codes is 256 times as large, in a short,
    and sums of such pairs are apart; then integer scales follow, of 16 columns."""
    if packing.values or packing.bits not in (4, 5, 6):
        return  # never in place
    largest = ((1 << packing.bits) - 1) << 8
    assert largest <= SHORT_MAX
    assert BLOCK // 4 * largest * CODE_MAX <= INT_MAX
    if packing.scales.signed:
        assert BLOCK // 2 * packing.code_max * CODE_MAX <= INT_MAX


@every_row
def test_a_span_s_products_fit_into_32_bits(packing: Packing) -> None:
    """Activations of two blocks have magnitudes of up to SPAN_SUM_MAX together."""
    if packing.span > 1:
        weight = packing.code_max * packing.scales.sum_factor
        assert weight * SPAN_SUM_MAX * packing.span // 2 <= INT_MAX
        assert weight <= SHORT_MAX  # dot_tiles.cl multiplies codes beforehand


@every_row
def test_products_of_bytes_fit_into_16_bits(packing: Packing) -> None:
    if packing.scales.takes_bytes:
        assert packing.byte_max <= 128
        assert packing.depth in (1, 2, 4, 8)
        assert packing.depth * 2 * packing.byte_max * BYTE_CODE_MAX <= SHORT_MAX
        assert 4 * packing.depth <= packing.scales.columns


@every_row
def test_codes_have_a_place(packing: Packing) -> None:
    assert packing.bits in (1, 2, 3, 4, 5, 6, 8, 16)
    assert len(packing.values) <= min(1 << packing.bits, 16)
    if packing.values:
        assert packing.values[0] == -packing.moved_up
        assert {v + packing.moved_up for v in packing.values} <= set(range(-128, 256))


@pytest.mark.parametrize(
    ("name", "code_max", "span", "depth"),
    [
        ("Q4_0", 15, 1, 8),
        ("Q8_0", 128, 1, 1),
        ("Q3_K", 4 * 128, 1, 4),
        ("Q4_K", 15, 8, 8),
        ("Q5_K", 31, 4, 4),
        ("Q6_K", 32 * 128, 1, 2),
        ("IQ2_XS", 43 * 31, 1, 2),
        ("IQ4_NL", 127 + 113, 1, 1),
        ("MXFP4", 12 << 8, 1, 8),
    ],
)
def test_bounds(name: str, code_max: int, span: int, depth: int) -> None:
    packing = ROWS[name]
    assert (packing.code_max, packing.span, packing.depth) == (code_max, span, depth)


def test_bound_of_halves_as_integers() -> None:
    assert {ROWS[kind.name].code_max for kind in INTEGERS_OF.values()} == {4096}


def test_a_row_beyond_the_bounds_is_seen() -> None:
    assert Packing(8, CHARS).code_max == 128 * 128


def test_activations_have_the_limits_that_the_bounds_are_made_of() -> None:
    text = (SOURCES / "include/activation.cl").read_text(encoding="utf-8")
    defined = [float(n) for n in re.findall(r"#define (?:SPAN_SUM|CODE)_MAX ([\d.]+)f", text)]
    assert defined == [BYTE_CODE_MAX, CODE_MAX, SPAN_SUM_MAX]


def test_what_kernels_are_told_of_a_type() -> None:
    assert by_name("IQ4_XS").defines == (
        "TYPE_IQ4_XS", "BLOCK_BYTES=136", "LOW_BITS=4", "HIGH_BITS=0", "QBYTES=256", "SCALES_CHAR",
        "SUPER=8", "SBYTES=160", "PARTS=1", "STEP=1.0f", "OFFSET=127.0f", "CODE_AT=0", "WITH_M",
        "TABLE_LOW=0x75695C4E3E2C1700", "TABLE_HIGH=0xF0D8C4B4A5988C80", "DEPTH=1",
        "BYTE_TABLE_LOW=0xF6EADDCFBFAD9881", "BYTE_TABLE_HIGH=0x7159453526190D01", "SIGNED_CODES",
        "D_AT=0",
    )  # fmt: skip
    assert by_name("BF16").defines == (
        "TYPE_BF16", "BLOCK_BYTES=2", "WEIGHT_BYTES=2", "LOAD_WEIGHT=LOAD_BF16"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (by_name("F16"), (2 * 16 * 77 * 2, 2 * 16 * 77 * 2)),
        (by_name("Q4_K"), (2 * 24 * 256, 2 * 24 * 256 + 2 * 3 * 320)),
        (by_name("Q5_1"), (2 * 24 * 320, 2 * 24 * (320 + 64))),
        (by_name("NVFP4"), (2 * 24 * 256, 2 * 24 * 256 + 2 * 12 * 80)),
    ],
    ids=lambda value: value.name if isinstance(value, TensorType) else "",
)
def test_packed_sizes(kind: TensorType, sizes: tuple[int, int]) -> None:
    assert kind.packed_size(2, 77 if kind.is_float else 768) == sizes
