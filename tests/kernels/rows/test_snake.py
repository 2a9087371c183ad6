"""SnakeBeta against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.rows.snake import snake


@pytest.mark.parametrize("n_cols", [40, 1])
def test_snake(device: Device, programs: Programs, n_cols: int) -> None:
    rng = np.random.default_rng(3)
    x, alpha, beta = (rng.standard_normal(s, np.float32) for s in ((7, n_cols), n_cols, n_cols))
    expected = x + beta * np.sin(alpha * x) ** 2
    dx, da, db = (upload(device, each) for each in (x, alpha, beta))
    out = empty(device, x.shape)
    run(device, programs, len(x), lambda tape: snake(tape, dx, da, db, out))
    np.testing.assert_allclose(read(out, None, device.queue), expected, rtol=1e-5, atol=1e-6)
    run(device, programs, len(x), lambda tape: snake(tape, dx, da, db, dx))
    np.testing.assert_allclose(read(dx, None, device.queue), expected, rtol=1e-5, atol=1e-6)
