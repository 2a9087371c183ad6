"""The gated delta rule with state, against NumPy, in one step and in pieces."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from launching import run
from sequences import LENGTHS, PIECES, SLOTS, WHOLE, Division, place

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import Columns, empty, read, upload
from gguf_serve.kernels.recurrent.delta import DeltaRule, delta_rule

HEADS, KEY, VALUE = 4, 32, 24


@pytest.mark.parametrize("division", [WHOLE, PIECES], ids=["whole", "pieces"])
@pytest.mark.parametrize(
    ("repeat", "tiled", "per_key", "lower"),
    [(1, False, False, 0.0), (2, False, False, 0.0), (2, True, False, 0.0), (1, False, True, 0.0),
     (1, False, True, -5.0)],
    ids=["gated delta net", "shared keys", "tiled keys", "gate per key", "bounded gate"],
)  # fmt: skip
def test_rule(
    device: Device,
    programs: Programs,
    division: Division,
    repeat: int,
    tiled: bool,
    per_key: bool,
    lower: float,
) -> None:
    rng = np.random.default_rng(3)
    key_heads, gates = HEADS // repeat, HEADS * (KEY if per_key else 1)
    a = -rng.random(HEADS).astype(np.float32) - 0.1
    bias = rng.standard_normal(gates).astype(np.float32)
    rule = DeltaRule(
        HEADS, KEY, VALUE, upload(device, a), upload(device, bias), repeat, tiled, per_key, lower
    )
    sizes = (key_heads * KEY, key_heads * KEY, HEADS * VALUE, HEADS, gates)
    ends = np.cumsum((0, *sizes))
    inputs = {}
    for slot, n in LENGTHS.items():
        rows = rng.standard_normal((n, ends[-1]))
        keys = rows[:, : ends[2]].reshape(n, 2 * key_heads, KEY)  # as an RMS norm leaves them
        keys /= np.sqrt((keys**2).mean(axis=2, keepdims=True))
        inputs[slot] = rows.astype(np.float32)
    state = upload(device, np.full((SLOTS, HEADS, VALUE, KEY), np.nan, np.float32))
    results = {slot: np.zeros((n, HEADS * VALUE)) for slot, n in LENGTHS.items()}
    done: dict[int, int] = {}
    for step in division.steps:
        sequences, counts, parts = place(device, step, done)
        rows_ = upload(device, np.concatenate([inputs[slot][at] for slot, at in parts]))
        columns = [Columns(rows_, int(at)) for at in ends[:-1]]
        out = empty(device, (counts[0], HEADS * VALUE))
        run(
            device, programs, counts,
            lambda tape, columns=columns, sequences=sequences, out=out: delta_rule(
                tape, rule, *columns, sequences, state, out
            ),
        )  # fmt: skip
        found, n = read(out, None, device.queue), 0
        for slot, at in parts:
            results[slot][at] = found[n : n + len(at)]
            n += len(at)
    key_of = np.arange(HEADS) % key_heads if tiled else np.arange(HEADS) // repeat
    for slot, each in inputs.items():
        s = np.zeros((HEADS, KEY, VALUE))
        for t, row in enumerate(each.astype(np.float64)):
            q, k, v, beta, gate = (row[i:j] for i, j in pairwise(ends))
            q, k = (m.reshape(key_heads, KEY)[key_of] / math.sqrt(KEY) for m in (q, k))
            raw = (gate + bias).reshape(HEADS, -1)
            if lower:
                decay = np.exp(lower / (1 + np.exp(-a[:, None] * raw)))
            else:
                decay = np.exp(a[:, None] * np.log1p(np.exp(raw)))
            s = s * decay[:, :, None]
            error = v.reshape(HEADS, VALUE) - np.einsum("hkv,hk->hv", s, k)
            s = s + np.einsum("hk,hv->hkv", k, error / (1 + np.exp(-beta[:, None])))
            expected = np.einsum("hkv,hk->hv", s, q) / math.sqrt(KEY)
            np.testing.assert_allclose(results[slot][t], expected.reshape(-1), rtol=1e-3, atol=2e-5)
