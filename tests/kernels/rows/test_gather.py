"""Picked rows, side by side and summed, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.rows.gather import gather, mix

ROWS, COLUMNS, TAPS, OUT = 11, 40, 3, 7


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def an_index() -> np.ndarray:
    return np.random.default_rng(5).integers(-1, ROWS, (OUT, TAPS)).astype(np.int32)


def picked(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """[out, taps, columns], zeros for negative rows."""
    return np.concatenate([x, np.zeros((1, x.shape[1]), np.float32)])[index]


def test_rows_side_by_side(device: Device, programs: Programs) -> None:
    x, index = random(ROWS, COLUMNS), an_index()
    assert (index < 0).any()
    out = empty(device, (OUT, TAPS * COLUMNS))
    dx, di = upload(device, x), upload(device, index)
    run(device, programs, OUT, lambda tape: gather(tape, dx, di, out))
    np.testing.assert_array_equal(
        read(out, None, device.queue), picked(x, index).reshape(OUT, TAPS * COLUMNS)
    )


@pytest.mark.parametrize("kind", ["plain", "channel", "row"])
def test_weighted_sums(device: Device, programs: Programs, kind: str) -> None:
    x, index = random(ROWS, COLUMNS), an_index()
    shapes = {"channel": (TAPS, COLUMNS), "row": (OUT, TAPS)}
    weights = random(*shapes[kind]) if kind in shapes else None
    before = random(OUT, COLUMNS)
    out = upload(device, before)
    dx, di = upload(device, x), upload(device, index)
    dw = None if weights is None else upload(device, weights)
    run(
        device, programs, OUT,
        lambda tape: mix(tape, dx, di, out, weights=dw, add=True, bounds=(-1.0, 1.5)),
    )  # fmt: skip
    factors = {"channel": lambda w: w[None], "row": lambda w: w[:, :, None]}
    rows = picked(x, index) * (1 if weights is None else factors[kind](weights))
    expected = np.clip(before + rows.sum(axis=1), -1.0, 1.5)
    np.testing.assert_allclose(read(out, None, device.queue), expected, rtol=1e-5, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused(device: Device, programs: Programs) -> None:
    x, index = empty(device, (ROWS, COLUMNS)), upload(device, an_index())
    with pytest.raises(ValueError, match="3 rows of 40 values in rows of 40"):
        run(device, programs, 0, lambda tape: gather(tape, x, index, x))
    with pytest.raises(ValueError, match=r"weights \(11, 40\)"):
        run(device, programs, 0, lambda tape: mix(tape, x, index, x, weights=x))
