"""Causal convolution with state, against NumPy, in one step and in pieces."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run
from sequences import LENGTHS, PIECES, SLOTS, WHOLE, Division, place

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.recurrent.conv import ConvWeights, conv

CHANNELS, TAPS = 48, 4


@pytest.mark.parametrize("division", [WHOLE, PIECES], ids=["whole", "pieces"])
@pytest.mark.parametrize("variant", ["plain", "silu with bias", "gated"])
def test_convolution(device: Device, programs: Programs, division: Division, variant: str) -> None:
    rng = np.random.default_rng(1)
    gated, silu = variant == "gated", variant == "silu with bias"
    inputs = {slot: rng.standard_normal((n, 160)).astype(np.float32) for slot, n in LENGTHS.items()}
    weights = rng.standard_normal((TAPS, CHANNELS)).astype(np.float32)
    bias = rng.standard_normal(CHANNELS).astype(np.float32) if silu else None
    w = ConvWeights(upload(device, weights), None if bias is None else upload(device, bias))
    # What an earlier sequence left in a slot counts for nothing.
    state = upload(device, np.full((SLOTS, *w.state_shape), np.nan, np.float32))
    results = {slot: np.zeros((n, CHANNELS)) for slot, n in LENGTHS.items()}
    done: dict[int, int] = {}
    for step in division.steps:
        sequences, counts, parts = place(device, step, done)
        x = upload(device, np.concatenate([inputs[slot][at] for slot, at in parts]))
        out = empty(device, (counts[0], CHANNELS))
        run(
            device, programs, counts,
            lambda tape, x=x, sequences=sequences, out=out: conv(
                tape, x, w, sequences, state, out, x_at=100, silu=silu,
                gate_at=0 if gated else None, out_gate_at=48 if gated else None,
            ),
        )  # fmt: skip
        found, n = read(out, None, device.queue), 0
        for slot, at in parts:
            results[slot][at] = found[n : n + len(at)]
            n += len(at)
    for slot, x in inputs.items():
        rows = x.astype(np.float64)
        v = rows[:, 100:148] * (rows[:, :48] if gated else 1)
        padded = np.concatenate([np.zeros((TAPS - 1, CHANNELS)), v])
        expected = sum(weights[j] * padded[j : j + len(v)] for j in range(TAPS))
        if bias is not None:
            expected = expected + bias
            expected = expected / (1 + np.exp(-expected))
        if gated:
            expected = expected * rows[:, 48:96]
        np.testing.assert_allclose(results[slot], expected, rtol=1e-4, atol=1e-5)


def test_channels_that_are_no_multiple_of_16_are_refused(
    device: Device, programs: Programs
) -> None:
    w = ConvWeights(empty(device, (4, 40)))
    x = empty(device, (1, 40))
    with pytest.raises(ValueError, match="40 channels"):
        run(device, programs, 1, lambda tape: conv(tape, x, w, x, x, x))
