"""Activations of 8 bits: written by every kernel that quantizes, multiplied with every type."""

from __future__ import annotations

import gguf
import launching
import numpy as np
import numpy.typing as npt
import pytest
from launching import BYTE_MAX, exact_activations, quantized, run, unquantized
from msgspec.structs import replace
from random_blocks import columns, random_matrix

from gguf_serve.kernels.matrix.matmul import glu, matmul
from gguf_serve.kernels.matrix.moe import Routing, route, routing_buffers
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import N_COUNTS, Tape
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.quantization.activations import activations, takes_bytes
from gguf_serve.kernels.quantization.quants import SUPPORTED_TYPES, by_name
from gguf_serve.kernels.quantization.weights import (
    Matrix,
    pack,
    place_experts,
    raw_matrix,
    run_job,
)

Floats = npt.NDArray[np.float32]
ROUNDING = 8 * 2.0**-24  # of float sums, relative to the sum of magnitudes
PASSES = [(32, 67), (32, 5), (8, 9), (8, 6), (8, 3), (8, 2), (1, 1)]  # tile, tokens


@pytest.fixture(autouse=True)
def _family(device: Device) -> None:
    if not device.is_simd:
        pytest.skip("for CPUs only")


def product(
    device: Device, programs: Programs, w: Matrix, x: Floats, tile: int, before: Floats
) -> Floats:
    """``before`` plus the products of all tokens of x."""
    inputs = quantized(device, programs, x, bytes=True)
    return launching.product(device, programs, w, inputs, len(x), tile, before, add=True)


@pytest.mark.parametrize(
    "type_name", [name for name in SUPPORTED_TYPES if by_name(name).takes_bytes]
)
def test_products(device: Device, programs: Programs, type_name: str) -> None:
    check_products(device, programs, type_name)


@pytest.mark.parametrize("type_name", ["Q4_K", "Q6_K", "Q8_0", "Q2_K", "IQ2_XS"])
def test_products_without_instructions_for_them(device: Device, type_name: str) -> None:
    """The way of processors with VNNI, but for what multiplies four bytes."""
    plain = replace(device, capabilities=replace(device.capabilities, forms=()))
    check_products(plain, Programs(plain), type_name)


def check_products(device: Device, programs: Programs, type_name: str) -> None:
    """Also that a token's bits do not depend on its company."""
    rng, n_rows = np.random.default_rng(1), 50
    raw, numbers = random_matrix(type_name, n_rows, 3 * columns(type_name), rng)
    w = pack(device, programs, [raw])
    x = exact_activations(67, w.n_cols, rng, BYTE_MAX)
    before = rng.standard_normal((67, n_rows), dtype=np.float32)
    expected, magnitude = before + x @ numbers.T, np.abs(before) + np.abs(x) @ np.abs(numbers).T
    whole = None
    for tile, n in PASSES:
        result = product(device, programs, w, x[:n], tile, before[:n])
        error, bound = np.abs(result - expected[:n]), ROUNDING * magnitude[:n]
        assert np.all(error <= bound), f"{tile}: {(error / bound).max():.2f} times the bound"
        whole = result if whole is None else whole
        assert np.array_equal(result, whole[:n])


@pytest.mark.parametrize("tile", [1, 8, 32])
@pytest.mark.parametrize("type_name", ["Q6_K", "Q5_K", "Q8_0", "Q4_0", "IQ4_XS"])
def test_the_largest_sums(device: Device, programs: Programs, type_name: str, tile: int) -> None:
    """All codes and all scales of weights and activations at their ends, of one sign: sums of 16
    bits hold them."""
    block = np.full(by_name(type_name).block_bytes, 0xFF, np.uint8)
    one = np.array([1], np.float16).view(np.uint8)
    if type_name == "Q6_K":  # codes of -32, or of 31, scales of -128
        block[:192], block[192:208], block[208:] = np.repeat([0, 0xFF], 96), 0x80, one
    elif type_name == "Q5_K":  # codes of 31, scales of 63, minima of 0
        block[:2], block[2:4] = one, 0
    elif type_name == "IQ4_XS":  # codes of -127, scales of -32
        block[:2], block[2:] = one, 0
    elif type_name == "Q4_0":  # codes of 15 - 8
        block = np.concatenate([one, np.full(16, 0xFF, np.uint8)] * 8)
    else:
        block = np.concatenate([one, np.full(32, 0x80, np.uint8)] * 8)  # codes of -128
    w = pack(device, programs, [raw_matrix(np.tile(block, 16), type_name, 16, 256)])
    numbers = gguf.quants.dequantize(block, gguf.GGMLQuantizationType[type_name])
    x = np.full((tile, 256), BYTE_MAX / 64, np.float32)
    x[1::2] *= -1  # every other token
    result = product(device, programs, w, x, tile, np.zeros((tile, 16), np.float32))
    expected = np.repeat(x @ numbers.astype(np.float64)[:, None], 16, axis=1)
    magnitude = np.abs(x) @ np.abs(numbers.astype(np.float64))[:, None]
    assert np.all(np.abs(result - expected) <= 128 * 2.0**-24 * magnitude)


@pytest.mark.parametrize("type_name", ["Q4_1", "IQ1_M"])
def test_what_writes_them(device: Device, programs: Programs, type_name: str) -> None:
    """The result of a GLU, in codes: half a step from the same in floats. What it reads may be
    codes of 15 bits."""
    rng = np.random.default_rng(2)
    pair = [random_matrix(type_name, 96, 256, rng)[0] for _ in range(2)]
    w = pack(device, programs, pair, paired=True)
    values = exact_activations(9, 256, rng, BYTE_MAX)
    x = quantized(device, programs, values, bytes=w.type.takes_bytes)
    counts = upload(device, np.full(N_COUNTS, 9, np.int32))
    codes, fine = (activations(device, 9, 96, quantized=True, bytes=b) for b in (True, False))
    for out in (codes, fine):
        run(
            device, programs, 9,
            lambda tape, out=out: glu(tape, w, x, out, counts, activation="silu", tile=8),
        )  # fmt: skip
    found, floats = (unquantized(device, programs, out, 9) for out in (codes, fine))
    steps = np.abs(floats).reshape(9, 3, 32).max(2, keepdims=True) / BYTE_MAX
    assert np.all(np.abs(found - floats).reshape(9, 3, 32) <= 0.51 * steps)
    assert not np.array_equal(found, floats)


@pytest.mark.parametrize(("tile", "n"), [(32, 67), (8, 7), (1, 1)])
def test_experts(device: Device, programs: Programs, tile: int, n: int) -> None:
    """Each row goes through its own matrix; tiles of 4 rows may have fewer."""
    rng, n_experts, used = np.random.default_rng(4), 5, 2
    raws, numbers = zip(
        *(random_matrix("Q6_K", 32, 512, rng) for _ in range(n_experts)), strict=True
    )
    w, jobs = place_experts(device, raws)
    for job in jobs:
        run_job(device, programs, job)
    values = exact_activations(n, 512, rng, BYTE_MAX)
    x = quantized(device, programs, values, bytes=True)
    logits = upload(device, rng.standard_normal((n, n_experts), dtype=np.float32))
    counts = upload(device, np.full(N_COUNTS, n, np.int32))
    routing, buffers = Routing(n_experts, used), routing_buffers(device, n, n_experts, used)
    out = empty(device, (n * used, 32))

    def record(tape: Tape) -> None:
        into, _ = route(tape, logits, routing, buffers, counts, tile=tile)
        matmul(tape, w, x, out, counts, tile=tile, experts=into)

    run(device, programs, n, record)
    chosen = np.array(numbers)[read(buffers.experts, None, device.queue).reshape(n, used)]
    result = read(out, None, device.queue).reshape(n, used, 32)
    error = np.abs(result - np.einsum("nurk,nk->nur", chosen, values))
    bound = ROUNDING * np.einsum("nurk,nk->nur", np.abs(chosen), np.abs(values))
    assert np.all(error <= bound)


def test_who_has_them(device: Device, programs: Programs) -> None:
    rng, floats = np.random.default_rng(3), np.zeros((1, 256), np.float32)
    k, other = (
        pack(device, programs, [random_matrix(name, 16, 256, rng)[0]])
        for name in ("Q4_K", "IQ1_M")
    )  # fmt: skip
    eager = replace(device, byte_codes="all")
    assert takes_bytes(eager, [k])
    assert not takes_bytes(eager, [k, other])
    assert not takes_bytes(device, [k])
    fine = pack(device, programs, [random_matrix("Q8_0", 16, 256, rng)[0]])
    assert takes_bytes(eager, [k, fine])
    some = replace(device, byte_codes="some")
    assert takes_bytes(some, [k])
    assert not takes_bytes(some, [k, fine])
    with pytest.raises(ValueError, match="IQ1_M weights need activations of more than 8 bits"):
        product(device, programs, other, floats, 1, floats[:, :16])
