"""Packing and unpacking, seen through ``embed``: every weight comes back exactly."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run
from random_blocks import columns, random_matrix

from kernels.device import Device
from kernels.embed import embed
from kernels.program import Programs
from kernels.tensor import empty, read, upload
from kernels.weights import SUPPORTED_TYPES, Matrix, pack, raw_matrix


def rows_of(device: Device, programs: Programs, w: Matrix, ids: list[int], scale: float = 1.0):
    out = empty(device, (len(ids), w.n_cols))
    tokens = upload(device, np.array(ids, np.int32))
    run(device, programs, len(ids), lambda tape: embed(tape, w, tokens, out, scale))
    return read(out, None, device.queue)


@pytest.mark.parametrize("type_name", SUPPORTED_TYPES)
def test_every_packed_weight_is_the_file_s(device: Device, programs: Programs, type_name: str):
    raw, values = random_matrix(type_name, 50, columns(type_name), np.random.default_rng(1))
    w = pack(device, programs, [raw])
    assert (w.n_rows, w.n_cols) == values.shape
    assert np.array_equal(rows_of(device, programs, w, list(range(50))), values)


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
    with pytest.raises(ValueError, match="IQ4_NL"):
        pack(device, programs, [raw_matrix(np.zeros(18, np.uint8), "IQ4_NL", 1, 32)])


def test_an_embedding_of_another_width_is_refused(device: Device, programs: Programs) -> None:
    w = pack(device, programs, [random_matrix("Q8_0", 16, 64, np.random.default_rng(5))[0]])
    with pytest.raises(ValueError, match="64 columns into rows of 32"):
        run(
            device, programs, 1,
            lambda tape: embed(tape, w, empty(device, (1,), np.int32), empty(device, (1, 32))),
        )  # fmt: skip
