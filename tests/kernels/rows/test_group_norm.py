"""Group norm over sequences against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.rows.group_norm import GroupNormWeights, group_norm

SEQUENCES = [(0, 5, 0, 0), (5, 1, 1, 0), (6, 70, 2, 0)]


@pytest.mark.parametrize("silu", [False, True])
def test_each_sequence_by_itself(device: Device, programs: Programs, silu: bool) -> None:
    """Far from zero, where a variance as a difference of squares would be lost."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((76, 24), dtype=np.float32) + 300
    weight, bias = rng.standard_normal((2, 24), dtype=np.float32)
    rows, sequences = upload(device, x), upload(device, np.array(SEQUENCES, np.int32))
    w = GroupNormWeights(upload(device, weight), upload(device, bias), 4, 1e-6)
    out = empty(device, x.shape)
    run(
        device, programs, (76, 76, 76, 76, 3),
        lambda tape: group_norm(tape, rows, w, sequences, out, silu=silu)
    )  # fmt: skip
    grouped = [x[a : a + n].astype(np.float64).reshape(n, 4, 6) for a, n, _, _ in SEQUENCES]
    normed = [
        (g - g.mean((0, 2), keepdims=True)) / np.sqrt(g.var((0, 2), keepdims=True) + 1e-6)
        for g in grouped
    ]
    expected = np.concatenate(normed).reshape(76, 24) * weight + bias
    expected = expected / (1 + np.exp(-expected)) if silu else expected
    np.testing.assert_allclose(read(out, None, device.queue), expected, rtol=1e-3, atol=1e-3)


def test_channels_that_are_no_multiple_of_the_groups(device: Device, programs: Programs) -> None:
    rows = empty(device, (1, 10))
    w = GroupNormWeights(rows, rows, 4, 1e-6)
    with pytest.raises(ValueError, match="10 channels in 4 groups"):
        run(device, programs, 1, lambda tape: group_norm(tape, rows, w, rows, rows))
