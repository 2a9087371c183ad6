"""Packing and unpacking, seen through ``embed``: every weight comes back exactly."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run
from msgspec.structs import replace
from random_blocks import columns, dequantize, random_blocks, random_matrix

from gguf_serve.kernels.matrix.embed import embed
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.quantization.quants import SUPPORTED_TYPES
from gguf_serve.kernels.quantization.weights import Matrix, pack, raw_matrix


def rows_of(device: Device, programs: Programs, w: Matrix, ids: list[int], scale: float = 1.0):
    out = empty(device, (len(ids), w.n_cols))
    tokens = upload(device, np.array(ids, np.int32))
    run(device, programs, len(ids), lambda tape: embed(tape, w, tokens, out, scale))
    return read(out, None, device.queue)


@pytest.mark.parametrize("type_name", [*SUPPORTED_TYPES, "F16_INT13", "BF16_INT13"])
def test_every_packed_weight_is_the_file_s(device: Device, programs: Programs, type_name: str):
    raw, values = random_matrix(type_name, 50, columns(type_name), np.random.default_rng(1))
    w = pack(device, programs, [raw])
    assert (w.n_rows, w.n_cols) == values.shape
    assert np.array_equal(rows_of(device, programs, w, list(range(50))), values)


def test_the_ends_of_the_scales_of_mxfp4(device: Device, programs: Programs) -> None:
    """Exponents of subnormal numbers and the largest; 12 times the last are still finite."""
    blocks = random_blocks("MXFP4", (16, 2), np.random.default_rng(6))
    blocks[:, 0, 0], blocks[:, 1, 0] = np.arange(16), 250 - np.arange(16)
    w = pack(device, programs, [raw_matrix(blocks.reshape(-1), "MXFP4", 16, 64)])
    expected = dequantize(blocks.reshape(16, -1), "MXFP4")
    assert np.array_equal(rows_of(device, programs, w, list(range(16))), expected)


def test_nvfp4_with_a_scale_of_the_whole(device: Device, programs: Programs) -> None:
    """All bytes of scales, among them those that mean 0; two matrices with scales of their own."""
    blocks = random_blocks("NVFP4", (64,), np.random.default_rng(7))
    blocks[:, :4] = np.arange(256).reshape(64, 4)
    numbers = dequantize(blocks, "NVFP4")
    raw = raw_matrix(blocks.reshape(-1), "NVFP4", 64, 64)
    scaled = replace(raw, scale=0.75)
    w = pack(device, programs, [raw, scaled])
    expected = np.concatenate([numbers, numbers * np.float32(0.75)])
    assert np.array_equal(rows_of(device, programs, w, list(range(128))), expected)


@pytest.mark.parametrize("type_name", ["F16", "Q4_K", "Q5_1"])
def test_stacked_matrices_lie_below_each_other(
    device: Device, programs: Programs, type_name: str
) -> None:
    rng = np.random.default_rng(2)
    parts = [random_matrix(type_name, n, columns(type_name), rng) for n in (32, 16, 21)]
    w = pack(device, programs, [raw for raw, _ in parts])
    values = np.concatenate([values for _, values in parts])
    assert np.array_equal(rows_of(device, programs, w, list(range(69))), values)


def test_embedding_takes_rows_in_any_order_and_scales_them(
    device: Device, programs: Programs
) -> None:
    raw, values = random_matrix("Q6_K", 40, 256, np.random.default_rng(3))
    w = pack(device, programs, [raw])
    ids = [39, 0, 17, 17, 31]
    expected = values[ids].astype(np.float32) * np.float32(16.5)
    assert np.array_equal(rows_of(device, programs, w, ids, 16.5), expected)


def test_every_finite_half_is_kept(device: Device, programs: Programs) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(62, 1024)
    w = pack(device, programs, [raw_matrix(halves.view(np.uint8).reshape(-1), "F16", 62, 1024)])
    assert np.array_equal(rows_of(device, programs, w, list(range(62))), halves)


def test_what_cannot_be_packed_together(device: Device, programs: Programs) -> None:
    rng = np.random.default_rng(4)
    a, _ = random_matrix("Q8_0", 20, 64, rng)
    with pytest.raises(ValueError, match="multiple of 16"):
        pack(device, programs, [a, a])
    with pytest.raises(ValueError, match="different types or widths"):
        pack(device, programs, [a, random_matrix("Q4_0", 20, 64, rng)[0]])
    with pytest.raises(ValueError, match="different types or widths"):
        pack(device, programs, [a, random_matrix("Q8_0", 20, 96, rng)[0]], paired=True)
    with pytest.raises(ValueError, match="Q8_K"):
        pack(device, programs, [raw_matrix(np.zeros(292, np.uint8), "Q8_K", 1, 256)])
    with pytest.raises(ValueError, match=r"Q8_0 matrices with a scale of 0\.5"):
        pack(device, programs, [replace(a, scale=0.5)])


def test_an_embedding_of_another_width_is_refused(device: Device, programs: Programs) -> None:
    w = pack(device, programs, [random_matrix("Q8_0", 16, 64, np.random.default_rng(5))[0]])
    with pytest.raises(ValueError, match="64 columns into rows of 32"):
        run(
            device, programs, 1,
            lambda tape: embed(tape, w, empty(device, (1,), np.int32), empty(device, (1, 32))),
        )  # fmt: skip
