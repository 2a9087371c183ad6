"""Lightning attention with state, against NumPy, in one step and in pieces."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run
from sequences import LENGTHS, PIECES, SLOTS, WHOLE, Division, place

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.recurrent.lightning import lightning

HEADS, HEAD = 3, 32


@pytest.mark.parametrize("division", [WHOLE, PIECES], ids=["whole", "pieces"])
def test_lightning(device: Device, programs: Programs, division: Division) -> None:
    rng = np.random.default_rng(6)
    decay = rng.uniform(0.3, 0.99, HEADS).astype(np.float32)
    inputs = {
        slot: rng.standard_normal((n, HEADS * 3 * HEAD)).astype(np.float32)
        for slot, n in LENGTHS.items()
    }
    state = upload(device, np.full((SLOTS, HEADS, HEAD, HEAD), np.nan, np.float32))
    factors = upload(device, decay)
    results = {slot: np.zeros((n, HEADS * HEAD)) for slot, n in LENGTHS.items()}
    done: dict[int, int] = {}
    for step in division.steps:
        sequences, counts, parts = place(device, step, done)
        rows = upload(device, np.concatenate([inputs[slot][at] for slot, at in parts]))
        out = empty(device, (counts[0], HEADS * HEAD))
        run(
            device, programs, counts,
            lambda tape, rows=rows, sequences=sequences, out=out: lightning(
                tape, rows, factors, HEAD, sequences, state, out
            ),
        )  # fmt: skip
        found, n = read(out, None, device.queue), 0
        for slot, at in parts:
            results[slot][at] = found[n : n + len(at)]
            n += len(at)
    for slot, each in inputs.items():
        s = np.zeros((HEADS, HEAD, HEAD))
        x = each.astype(np.float64)
        x /= 1 + np.exp(-x)
        for t, (q, k, v) in enumerate(x.reshape(-1, HEADS, 3, HEAD).transpose(0, 2, 1, 3)):
            s = s * decay[:, None, None] + np.einsum("hk,hv->hkv", k, v)
            expected = np.einsum("hk,hkv->hv", q, s).reshape(-1)
            np.testing.assert_allclose(results[slot][t], expected, rtol=1e-4, atol=1e-5)
