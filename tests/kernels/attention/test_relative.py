"""Attention with terms for distances, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run

from gguf_serve.kernels.attention.relative import relative_attention
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload

N, HEADS, HEAD, ZERO = 21, 3, 32, 20


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_relative_attention(device: Device, programs: Programs, softcap: float) -> None:
    rng = np.random.default_rng(4)
    q, p, k, v = rng.standard_normal((4, N, HEADS * HEAD)).astype(np.float32)
    table = rng.standard_normal((ZERO + N, HEADS * HEAD)).astype(np.float32)
    last = rng.integers(1, N + 1, N)
    ranges = np.stack([rng.integers(0, last), last], axis=1).astype(np.int32)
    out = empty(device, (N, HEADS * HEAD))
    given = [upload(device, x) for x in (q, p, k, v, table, ranges)]
    run(
        device, programs, N,
        lambda tape: relative_attention(
            tape, *given, out, head=HEAD, zero=ZERO, scale=0.3, softcap=softcap
        ),
    )  # fmt: skip
    found = read(out, None, device.queue).reshape(N, HEADS, HEAD)
    q, p, k, v, table = (x.astype(float).reshape(-1, HEADS, HEAD) for x in (q, p, k, v, table))
    for i, (first, end) in enumerate(ranges):
        j = np.arange(first, end)
        scores = 0.3 * np.einsum("hd,jhd->hj", q[i], k[j])
        scores += 0.3 * np.einsum("hd,jhd->hj", p[i], table[ZERO + i - j])
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        expected = np.einsum("hj,jhd->hd", weights, v[j])
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)
