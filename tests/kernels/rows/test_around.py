"""Convolutions over whole sequences against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.rows.around import around, depthwise

SEQUENCES = [(0, 5, 0, 0), (5, 1, 1, 0), (6, 9, 2, 0)]
COUNTS = (15, 15, 15, 15, 3)
RNG = np.random.default_rng(1)


def windows(x: np.ndarray, taps: int) -> np.ndarray:
    """[n, channels, taps] of each token's own sequence."""
    found = []
    for first, n, _, _ in SEQUENCES:
        padded = np.pad(x[first : first + n], ((taps // 2, taps // 2), (0, 0)))
        found.append(np.lib.stride_tricks.sliding_window_view(padded, taps, axis=0))
    return np.concatenate(found)


@pytest.mark.parametrize(("n_cols", "taps"), [(40, 7), (32, 3), (5, 1)])
def test_what_is_around(device: Device, programs: Programs, n_cols: int, taps: int) -> None:
    """Of channels that are no multiple of a work-item's, and a sequence shorter than the taps."""
    x = RNG.standard_normal((15, n_cols), dtype=np.float32)
    rows, sequences = upload(device, x), upload(device, np.array(SEQUENCES, np.int32))
    out = empty(device, (15, n_cols * taps))
    run(device, programs, COUNTS, lambda tape: around(tape, rows, taps, sequences, out))
    assert np.array_equal(read(out, None, device.queue), windows(x, taps).reshape(15, -1))


@pytest.mark.parametrize("has_bias", [False, True])
def test_each_channel_by_itself(device: Device, programs: Programs, has_bias: bool) -> None:
    x = RNG.standard_normal((15, 40), dtype=np.float32)
    kernel, bias = RNG.standard_normal((7, 40), dtype=np.float32), np.arange(40, dtype=np.float32)
    rows, sequences = upload(device, x), upload(device, np.array(SEQUENCES, np.int32))
    out, weights = empty(device, (15, 40)), upload(device, kernel)
    given = upload(device, bias) if has_bias else None
    run(
        device, programs, COUNTS,
        lambda tape: depthwise(tape, rows, weights, sequences, out, bias=given)
    )  # fmt: skip
    expected = np.einsum("ncj,jc->nc", windows(x, 7), kernel) + has_bias * bias
    np.testing.assert_allclose(read(out, None, device.queue), expected, rtol=1e-5, atol=1e-5)


def test_no_token_in_the_middle(device: Device, programs: Programs) -> None:
    rows, out = empty(device, (1, 8)), empty(device, (1, 16))
    with pytest.raises(ValueError, match="2 rows of 8 values in rows of 16"):
        run(device, programs, 1, lambda tape: around(tape, rows, 2, rows, out))
