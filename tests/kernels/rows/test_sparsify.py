"""Gaussian top-k against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.rows.sparsify import sparsify


@pytest.mark.parametrize("sample", [False, True])
def test_what_stands_out(device: Device, programs: Programs, sample: bool) -> None:
    """Of some columns; the others stay. So few that both deviations are told apart."""
    x = np.random.default_rng(1).standard_normal((3, 96), dtype=np.float32) + 2
    rows = upload(device, x)
    run(
        device, programs, 3,
        lambda tape: sparsify(tape, rows, 48, 1.25, offset=32, sample=sample),
    )  # fmt: skip
    part, expected = x[:, 32:80].astype(np.float64), x.copy()
    least = part.mean(1) + 1.25 * part.std(1, ddof=int(sample))
    expected[:, 32:80] = np.maximum(part - least[:, None], 0)
    assert 0 < (expected[:, 32:80] > 0).mean() < 0.25
    np.testing.assert_allclose(read(rows, None, device.queue), expected, rtol=1e-4, atol=1e-6)


def test_rows_that_are_no_multiple_of_16(device: Device, programs: Programs) -> None:
    with pytest.raises(ValueError, match="40 values, not a multiple of 16"):
        run(device, programs, 1, lambda tape: sparsify(tape, empty(device, (1, 40)), 40, 1.0))
