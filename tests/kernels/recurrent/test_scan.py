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

N_STATE = 32
# Mamba has a number per value of the state, Mamba 2 one per head and a bias. A work-item has 16
# channels: of several heads and groups, or all of one head; or of groups of an odd size.
KINDS = {"mamba": (24, 24, 1), "mamba2": (24, 6, 2), "wide": (64, 2, 1), "odd": (30, 6, 2)}


@pytest.mark.parametrize("division", [WHOLE, PIECES], ids=["whole", "pieces"])
@pytest.mark.parametrize("kind", KINDS)
def test_scan(device: Device, programs: Programs, division: Division, kind: str) -> None:
    """All tokens at once, or in steps that bring some, in company and alone."""
    rng = np.random.default_rng(2)
    n_channels, heads, groups = KINDS[kind]
    per_state = heads == n_channels
    a = -rng.random((n_channels, N_STATE) if per_state else (heads,)).astype(np.float32) - 0.1
    d = rng.standard_normal(heads).astype(np.float32)
    bias = None if per_state else rng.standard_normal(heads).astype(np.float32)
    w = ScanWeights(
        upload(device, a), upload(device, d), None if bias is None else upload(device, bias),
        n_channels, heads, groups, N_STATE,
    )  # fmt: skip
    width = 2 * n_channels + heads + 2 * groups * N_STATE
    x_at, z_at, dt_at, b_at = 0, n_channels, 2 * n_channels, 2 * n_channels + heads
    c_at = b_at + groups * N_STATE
    inputs = {
        slot: rng.standard_normal((n, width)).astype(np.float32) for slot, n in LENGTHS.items()
    }
    state = upload(device, np.full((SLOTS, n_channels, N_STATE), np.nan, np.float32))
    results = {slot: np.zeros((n, n_channels)) for slot, n in LENGTHS.items()}
    done: dict[int, int] = {}
    for step in division.steps:
        sequences, counts, parts = place(device, step, done)
        rows = upload(device, np.concatenate([inputs[slot][at] for slot, at in parts]))
        out = empty(device, (counts[0], n_channels))
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
    head_of = np.arange(n_channels) // (n_channels // heads)
    group_of = head_of // (heads // groups)
    for slot, each in inputs.items():
        s = np.zeros((n_channels, N_STATE))
        for t, row in enumerate(each.astype(np.float64)):
            x, z, dt = row[:n_channels], row[z_at:dt_at], row[dt_at:b_at]
            b, c = row[b_at:c_at].reshape(groups, -1), row[c_at:].reshape(groups, -1)
            size = np.log1p(np.exp(dt + (0 if bias is None else bias)))[head_of, None]
            decay = np.exp(size * (a if per_state else a[head_of, None]))
            s = s * decay + b[group_of] * x[:, None] * size
            y = (s * c[group_of]).sum(axis=1) + d[head_of] * x
            expected = y * z / (1 + np.exp(-z))
            np.testing.assert_allclose(results[slot][t], expected, rtol=2e-4, atol=2e-5)
