"""Hyper-connections against NumPy: coefficients of all kinds, and the ways to and from streams."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.rows.hyper import (
    Mixing,
    coefficients,
    distribute,
    gated_mean,
    injection,
    n_coefficients,
    reduce,
    spread,
)

TOKENS, N, COLUMNS, EPS, ITERATIONS = 5, 4, 48, 1e-3, 3
RNG = np.random.default_rng(4)
STREAMS = RNG.standard_normal((TOKENS, N, COLUMNS)).astype(np.float32)
FACTORS = RNG.standard_normal((TOKENS, n_coefficients(N))).astype(np.float32)
X = RNG.standard_normal((TOKENS, COLUMNS)).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def doubly_stochastic(logits):
    """[tokens, source, destination], columns last."""
    mix = np.exp(logits - logits.max(2, keepdims=True))
    mix = mix / mix.sum(2, keepdims=True) + EPS
    for i in range(ITERATIONS):
        if i:
            mix /= mix.sum(2, keepdims=True) + EPS
        mix /= mix.sum(1, keepdims=True) + EPS
    return mix


@pytest.mark.parametrize("n_logits", [N, 2 * N, n_coefficients(N)])
def test_coefficients(device: Device, programs: Programs, n_logits: int) -> None:
    logits = RNG.standard_normal((TOKENS, n_logits)).astype(np.float32)
    base = RNG.standard_normal(n_logits).astype(np.float32)
    scale = RNG.standard_normal(3).astype(np.float32)
    mixing = Mixing(upload(device, base), upload(device, scale), EPS, 1.5, 0.25, ITERATIONS)
    out = upload(device, np.full(FACTORS.shape, np.nan, np.float32))
    run(
        device, programs, TOKENS,
        lambda tape: coefficients(tape, upload(device, logits), mixing, N, out),
    )  # fmt: skip
    found, exact = read(out, None, device.queue), logits.astype(np.float64)
    parts = [sigmoid(exact[:, :N] * scale[0] + base[:N]) + EPS]
    if n_logits > N:
        parts.append(1.5 * sigmoid(exact[:, N : 2 * N] * scale[1] + base[N : 2 * N]) + 0.25)
    if n_logits > 2 * N:
        mixed = (exact[:, 2 * N :] * scale[2] + base[2 * N :]).reshape(TOKENS, N, N)
        parts.append(doubly_stochastic(mixed).reshape(TOKENS, -1))
    expected = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(found[:, :n_logits], expected, rtol=2e-6, atol=1e-6)
    assert np.isnan(found[:, n_logits:]).all()


@pytest.mark.parametrize("mix", [False, True])
def test_distribute(device: Device, programs: Programs, mix: bool) -> None:
    streams = upload(device, STREAMS.reshape(TOKENS, -1))
    x, factors = upload(device, X), upload(device, FACTORS)
    run(device, programs, TOKENS, lambda tape: distribute(tape, x, factors, N, streams, mix=mix))
    matrix = FACTORS[:, 2 * N :].reshape(TOKENS, N, N) if mix else np.eye(N)[None]
    expected = np.einsum("tsd,tsc->tdc", np.broadcast_to(matrix, (TOKENS, N, N)), STREAMS)
    expected = expected + FACTORS[:, N : 2 * N, None] * X[:, None]
    found = read(streams, None, device.queue).reshape(STREAMS.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_one_stream_from_several_and_back(device: Device, programs: Programs) -> None:
    streams, factors = upload(device, STREAMS.reshape(TOKENS, -1)), upload(device, FACTORS)
    gate = upload(device, -STREAMS.reshape(TOKENS, -1))
    weighted, mean, gated = (empty(device, (TOKENS, COLUMNS)) for _ in range(3))
    copies = empty(device, (TOKENS, N * COLUMNS))
    run(
        device, programs, TOKENS,
        lambda tape: reduce(tape, streams, factors, N, weighted),
        lambda tape: reduce(tape, streams, None, N, mean),
        lambda tape: gated_mean(tape, streams, gate, N, gated),
        lambda tape: spread(tape, weighted, N, copies),
    )  # fmt: skip
    found = [read(t, None, device.queue) for t in (weighted, mean, gated, copies)]
    exact = STREAMS.astype(np.float64)
    expected = np.einsum("th,thc->tc", FACTORS[:, :N].astype(np.float64), exact)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(found[1], exact.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[2], (exact * sigmoid(-exact)).mean(1), rtol=1e-5, atol=1e-6)
    assert np.array_equal(found[3], np.tile(found[0], N))


def test_injection(device: Device, programs: Programs) -> None:
    logits = RNG.standard_normal((TOKENS, N)).astype(np.float32)
    out = upload(device, FACTORS)
    run(device, programs, TOKENS, lambda tape: injection(tape, upload(device, logits), N, out))
    found = read(out, None, device.queue)
    np.testing.assert_allclose(found[:, N : 2 * N], 2 * sigmoid(logits / N), rtol=1e-6)
    assert np.array_equal(found[:, :N], FACTORS[:, :N])


def test_what_does_not_fit(device: Device, programs: Programs) -> None:
    base = upload(device, np.zeros(6, np.float32))
    mixing, out = Mixing(base, base, EPS, 1.0, 0.0, 1), upload(device, FACTORS)
    odd = upload(device, np.zeros((TOKENS, 6), np.float32))
    with pytest.raises(ValueError, match="6 logits"):
        run(device, programs, TOKENS, lambda tape: coefficients(tape, odd, mixing, N, out))
    with pytest.raises(ValueError, match="6 values"):
        run(device, programs, TOKENS, lambda tape: spread(tape, odd, N, out))
