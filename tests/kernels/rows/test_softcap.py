"""Bounded logits against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import read, upload
from gguf_serve.kernels.rows.softcap import softcap


@pytest.mark.parametrize("n_vocab", [128, 1001])
def test_softcap(device: Device, programs: Programs, n_vocab: int) -> None:
    """Of the rows that are wanted; the last stays."""
    logits = 40 * np.random.default_rng(5).standard_normal((3, n_vocab), dtype=np.float32)
    x = upload(device, logits)
    run(device, programs, (9, 2, 0, 0), lambda tape: softcap(tape, x, 30.0))
    result = read(x, None, device.queue)
    expected = 30 * np.tanh(logits.astype(np.float64) / 30)
    assert np.abs(result[:2] - expected[:2]).max() <= 30 * 8 * 2.0**-24
    assert np.array_equal(result[2], logits[2])
