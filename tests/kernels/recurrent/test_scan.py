"""Selective scans with state, against NumPy, in one step and in pieces."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run
from sequences import LENGTHS, PIECES, SLOTS, WHOLE, Division, place

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import Columns, empty, read, upload
from gguf_serve.kernels.recurrent.scan import ScanWeights, scan

CHANNELS, N_STATE = 24, 32


@pytest.mark.parametrize("division", [WHOLE, PIECES], ids=["whole", "pieces"])
@pytest.mark.parametrize(("heads", "groups"), [(24, 1), (6, 2)], ids=["mamba", "mamba2"])
def test_scan(
    device: Device, programs: Programs, division: Division, heads: int, groups: int
) -> None:
    """Mamba has a number per value of the state, Mamba 2 one per head and a bias."""
    rng = np.random.default_rng(2)
    per_state = heads == CHANNELS
    a = -rng.random((CHANNELS, N_STATE) if per_state else (heads,)).astype(np.float32) - 0.1
    d = rng.standard_normal(heads).astype(np.float32)
    bias = None if per_state else rng.standard_normal(heads).astype(np.float32)
    w = ScanWeights(
        upload(device, a), upload(device, d), None if bias is None else upload(device, bias),
        CHANNELS, heads, groups, N_STATE,
    )  # fmt: skip
    width = 2 * CHANNELS + heads + 2 * groups * N_STATE
    x_at, z_at, dt_at, b_at = 0, CHANNELS, 2 * CHANNELS, 2 * CHANNELS + heads
    c_at = b_at + groups * N_STATE
    inputs = {
        slot: rng.standard_normal((n, width)).astype(np.float32) for slot, n in LENGTHS.items()
    }
    state = upload(device, np.full((SLOTS, CHANNELS, N_STATE), np.nan, np.float32))
    results = {slot: np.zeros((n, CHANNELS)) for slot, n in LENGTHS.items()}
    done: dict[int, int] = {}
    for step in division.steps:
        sequences, counts, parts = place(device, step, done)
        rows = upload(device, np.concatenate([inputs[slot][at] for slot, at in parts]))
        out = empty(device, (counts[0], CHANNELS))
        run(
            device, programs, counts,
            lambda tape, rows=rows, sequences=sequences, out=out: scan(
                tape, w, Columns(rows, x_at), Columns(rows, dt_at), rows, b_at, c_at,
                Columns(rows, z_at), sequences, state, out,
            ),
        )  # fmt: skip
        found, n = read(out, None, device.queue), 0
        for slot, at in parts:
            results[slot][at] = found[n : n + len(at)]
            n += len(at)
    head_of = np.arange(CHANNELS) // (CHANNELS // heads)
    group_of = head_of // (heads // groups)
    for slot, each in inputs.items():
        s = np.zeros((CHANNELS, N_STATE))
        for t, row in enumerate(each.astype(np.float64)):
            x, z, dt = row[:CHANNELS], row[z_at:dt_at], row[dt_at:b_at]
            b, c = row[b_at:c_at].reshape(groups, -1), row[c_at:].reshape(groups, -1)
            size = np.log1p(np.exp(dt + (0 if bias is None else bias)))[head_of, None]
            decay = np.exp(size * (a if per_state else a[head_of, None]))
            s = s * decay + b[group_of] * x[:, None] * size
            y = (s * c[group_of]).sum(axis=1) + d[head_of] * x
            expected = y * z / (1 + np.exp(-z))
            np.testing.assert_allclose(results[slot][t], expected, rtol=2e-4, atol=2e-5)
