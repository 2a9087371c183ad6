"""Products of few tokens by a GPU's instructions for shorts, done by hand: no GPU need be there.

Integer sums are exact in all forms, so that a GPU's bits do not depend on what it has.
"""

from __future__ import annotations

import launching
import numpy as np
import numpy.typing as npt
import pytest
from launching import exact_activations, quantized
from msgspec.structs import replace
from opencl_devices import SIMT
from random_blocks import columns, random_matrix

from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.quantization.quants import SUPPORTED_TYPES, by_name
from gguf_serve.kernels.quantization.weights import Matrix, pack, raw_matrix

Floats = npt.NDArray[np.float32]
TWO, FOUR = "SHORTS_DP2A_BY_HAND", "SHORTS_PACKED_BY_HAND"
PACKED = "SHORTS_PACKED"  # which Intel's driver for CPUs has
TYPES = [name for name in SUPPORTED_TYPES if by_name(name).takes_bytes]


@pytest.fixture(scope="module", params=SIMT)
def plain(request: pytest.FixtureRequest) -> Device:
    index, family = request.param
    return open_device(index, family=family)


@pytest.fixture(scope="module")
def programs(plain: Device) -> Programs:
    return Programs(plain)


def product(
    device: Device, programs: Programs, form: str, w: Matrix, x: Floats, tile: int
) -> Floats:
    """Ones plus the products of all tokens of x; ``form``: "" for plain C."""
    forms = (form,) if form else ()
    device = replace(device, capabilities=replace(device.capabilities, forms=forms))
    inputs, ones = quantized(device, programs, x), np.ones((len(x), w.n_rows), np.float32)
    return launching.product(device, programs, w, inputs, len(x), tile, ones, add=True)


@pytest.mark.parametrize(
    ("type_name", "form", "tile"),
    [
        *((name, TWO, 8) for name in TYPES),
        *((name, FOUR, 8) for name in ("Q4_K", "Q6_K", "Q2_K", "IQ4_XS", "MXFP4", "IQ2_S")),
        ("Q4_K", TWO, 1), ("Q6_K", FOUR, 1), ("Q4_K", PACKED, 8), ("IQ4_XS", PACKED, 8),
    ],
)  # fmt: skip
def test_the_bits_of_plain_products(
    plain: Device, programs: Programs, type_name: str, form: str, tile: int
) -> None:
    if form == PACKED and not plain.capabilities.byte_dots:
        pytest.skip("the driver has no products of four bytes")
    rng = np.random.default_rng(1)
    raw, numbers = random_matrix(type_name, 50, columns(type_name), rng)
    w = pack(plain, programs, [raw])
    x = exact_activations(1 if tile == 1 else 9, w.n_cols, rng)
    result = product(plain, programs, form, w, x, tile)
    assert np.array_equal(result, product(plain, programs, "", w, x, tile))
    magnitude = np.abs(x).astype(np.float64) @ np.abs(numbers).T
    assert np.all(np.abs(result - 1 - x @ numbers.T) <= 2.0**-21 * (magnitude + 1))


@pytest.mark.parametrize("form", [TWO, FOUR])
def test_the_largest_sums(plain: Device, programs: Programs, form: str) -> None:
    """Q6_K with codes of -32, scales of -128 and activations of one sign."""
    block = np.full(by_name("Q6_K").block_bytes, 0, np.uint8)
    block[192:208], block[208:] = 0x80, np.array([1], np.float16).view(np.uint8)
    w = pack(plain, programs, [raw_matrix(np.tile(block, 16), "Q6_K", 16, 256)])
    for sign in (1, -1):
        x = np.full((8, 256), sign * 16383 / 4096, np.float32)
        result = product(plain, programs, form, w, x, 8)
        assert np.allclose(result, 1 + 4096 * x.sum(1, keepdims=True), rtol=1e-6)
