"""Attention over depth against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.rows.depth import mix_depth


@pytest.mark.parametrize(("n_banked", "columns"), [(1, 16), (3, 1040)])
def test_mix(device: Device, programs: Programs, n_banked: int, columns: int) -> None:
    """Checkpoints beyond the banked ones, and rows beyond the step's, are NaN."""
    rng, tokens, eps = np.random.default_rng(5), 3, 1e-5
    bank = np.full((4, 5, columns), np.nan, np.float32)
    bank[:n_banked, :tokens] = 3 * rng.standard_normal((n_banked, tokens, columns))
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    weight = rng.standard_normal(columns).astype(np.float32) / np.float32(columns**0.5)
    out = empty(device, x.shape)
    arrays = [upload(device, array) for array in (bank, x, weight)]
    run(
        device, programs, tokens,
        lambda tape: mix_depth(tape, arrays[0], n_banked, *arrays[1:], eps, out),
    )  # fmt: skip
    sources = np.concatenate([bank[:n_banked, :tokens], x[None]]).astype(np.float64)
    normed = sources / np.sqrt((sources**2).mean(2, keepdims=True) + eps)
    weights = np.exp((normed * weight).sum(2))
    expected = np.einsum("it,itc->tc", weights / weights.sum(0), sources)
    np.testing.assert_allclose(read(out, None, device.queue), expected, rtol=1e-4, atol=2e-5)
