"""Softmax of rows against NumPy."""

from __future__ import annotations

import numpy as np
from launching import run

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import read, upload
from gguf_serve.kernels.rows.softmax import softmax

N, WIDTH = 5, 348


def test_rows_add_up_to_one(device: Device, programs: Programs) -> None:
    """Also of numbers whose exponentials are infinite; in place."""
    x = 200 * np.random.default_rng(1).standard_normal((N, WIDTH), dtype=np.float32)
    tensor = upload(device, x)
    run(device, programs, N, lambda tape: softmax(tape, tensor, tensor))
    powers = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(read(tensor, None, device.queue), expected, rtol=1e-4, atol=1e-7)
