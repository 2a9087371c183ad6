"""Convolutions with weights of each token's own against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.rows.dynamic_conv import dynamic_conv

SEQUENCES = [(0, 5, 0, 0), (5, 1, 1, 7), (6, 9, 2, 0)]
COUNTS = (15, 15, 15, 15, 3)
RNG = np.random.default_rng(1)


@pytest.mark.parametrize(("n_cols", "taps", "group"), [(40, 3, 8), (64, 4, 32), (5, 1, 1)])
def test_each_token_has_its_weights(
    device: Device, programs: Programs, n_cols: int, taps: int, group: int
) -> None:
    """Of channels that are no multiple of a work-item's, a sequence shorter than the taps, and
    shares that begin in the middle of rows. What was before the step is not seen."""
    x = RNG.standard_normal((15, n_cols), dtype=np.float32)
    weights = RNG.standard_normal((taps, n_cols), dtype=np.float32)
    shares = RNG.standard_normal((15, 6 + taps * (n_cols // group)), dtype=np.float32)
    own = shares[:, 6:].reshape(15, taps, -1).repeat(group, 2)
    expected = np.zeros_like(x)
    for first, n, _, _ in SEQUENCES:
        for t in range(n):
            for j in range(min(taps, t + 1)):
                expected[first + t] += (weights[j] + own[first + t, j]) * x[first + t - j]
    given = [upload(device, array) for array in (x, weights, shares)]
    sequences, out = upload(device, np.array(SEQUENCES, np.int32)), empty(device, (15, n_cols))
    run(
        device, programs, COUNTS,
        lambda tape: dynamic_conv(tape, *given, group, sequences, out, shares_at=6)
    )  # fmt: skip
    np.testing.assert_allclose(read(out, None, device.queue), expected, rtol=1e-5, atol=1e-5)


def test_shapes_that_do_not_fit(device: Device, programs: Programs) -> None:
    x, weights, shares = (empty(device, shape) for shape in ((2, 32), (3, 32), (2, 8)))
    sequences = upload(device, np.array(SEQUENCES[:1], np.int32))
    for group, message in ((5, "groups of 5 for rows of 32"), (8, "3 taps of 4 groups in rows")):
        with pytest.raises(ValueError, match=message):
            run(
                device, programs, 2,
                lambda tape, n=group: dynamic_conv(tape, x, weights, shares, n, sequences, x)
            )  # fmt: skip
