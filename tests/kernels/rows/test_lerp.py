"""Rows between two others, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run, unquantized

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import Columns, empty, read, upload
from gguf_serve.kernels.quantization.activations import activations
from gguf_serve.kernels.rows.lerp import lerp

N, WIDTH = 5, 96


@pytest.mark.parametrize("quantized", [False, True], ids=["floats", "integers"])
@pytest.mark.parametrize("shares", ["by column", "by value", "both"])
def test_lerp(device: Device, programs: Programs, shares: str, quantized: bool) -> None:
    """Of columns in the middle of rows."""
    rng = np.random.default_rng(1)
    x, y, rows = rng.standard_normal((3, N, 200), dtype=np.float32)
    by = rng.random(WIDTH, dtype=np.float32)
    dx, dy, drows = (Columns(upload(device, each), at) for each, at in ((x, 8), (y, 40), (rows, 3)))
    dby = upload(device, by)
    out = activations(device, N, WIDTH, quantized=quantized)
    run(
        device, programs, N,
        lambda tape: lerp(
            tape, dx, dy, out, by=None if shares == "by value" else dby,
            rows=None if shares == "by column" else drows,
        ),
    )  # fmt: skip
    if out.values is None:
        found = unquantized(device, programs, out, N)
    else:
        found = read(out.values, None, device.queue)
    share = rows[:, 3:99] * (shares != "by column") + by * (shares != "by value")
    expected = x[:, 8:104] + (y[:, 40:136] - x[:, 8:104]) * share
    np.testing.assert_allclose(found, expected, atol=2e-3 if quantized else 2e-6, rtol=1e-5)


def test_what_cannot_be_is_refused(device: Device, programs: Programs) -> None:
    x = Columns(empty(device, (1, 96)))
    narrow, whole = (activations(device, 1, n, quantized=False) for n in (40, 96))
    with pytest.raises(ValueError, match="40 columns"):
        run(device, programs, 1, lambda tape: lerp(tape, x, x, narrow, rows=x))
    with pytest.raises(ValueError, match="without a share"):
        run(device, programs, 1, lambda tape: lerp(tape, x, x, whole))
