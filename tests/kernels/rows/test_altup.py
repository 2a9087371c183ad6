"""AltUp's streams against NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from launching import run

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.rows.altup import add_others, correct, match, predict

N, TOKENS, WIDTH = 4, 5, 1040
Doubles = npt.NDArray[np.float64]


def random(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


STREAMS, LOGITS, X = random(1, TOKENS, N * WIDTH), random(2, TOKENS, N), random(3, TOKENS, WIDTH)


def by_stream(x: npt.NDArray[np.float32]) -> Doubles:
    return x.reshape(TOKENS, N, WIDTH).astype(np.float64)


def test_predictions(device: Device, programs: Programs) -> None:
    """In place, too."""
    factors = random(4, N * N, N)
    streams, logits, weights = (upload(device, x) for x in (STREAMS, LOGITS, factors))
    active = empty(device, X.shape)
    run(
        device, programs, TOKENS,
        lambda tape: predict(tape, streams, logits, weights, streams, active),
    )  # fmt: skip
    by = (np.tanh(LOGITS.astype(np.float64)) @ factors.T).reshape(TOKENS, N, N)
    expected = by_stream(STREAMS) + np.einsum("tji,tic->tjc", by, by_stream(STREAMS))
    result = read(streams, None, device.queue)
    np.testing.assert_allclose(by_stream(result), expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(read(active, None, device.queue), result[:, :WIDTH])


def test_corrections(device: Device, programs: Programs) -> None:
    factors, scale = random(5, N, N), random(6, WIDTH)
    inputs = [upload(device, x) for x in (STREAMS, X, LOGITS, factors, scale)]
    out, scaled = empty(device, STREAMS.shape), empty(device, X.shape)
    run(device, programs, TOKENS, lambda tape: correct(tape, *inputs, out, scaled))
    before = by_stream(STREAMS)
    by = 1 + np.tanh(LOGITS.astype(np.float64)) @ factors.T
    expected = before + by[..., None] * (X - before[:, 0])[:, None]
    result = read(out, None, device.queue)
    np.testing.assert_allclose(by_stream(result), expected, rtol=1e-4, atol=1e-5)
    found = read(scaled, None, device.queue)
    np.testing.assert_allclose(found, result[:, :WIDTH] * scale, rtol=1e-6)


def test_all_streams_but_the_first(device: Device, programs: Programs) -> None:
    y, streams = upload(device, X), upload(device, STREAMS.copy())
    run(device, programs, TOKENS, lambda tape: add_others(tape, y, N, streams))
    expected = STREAMS.reshape(TOKENS, N, WIDTH).copy()
    expected[:, 1:] += X[:, None]
    assert np.array_equal(read(streams, None, device.queue), expected.reshape(STREAMS.shape))


def test_the_magnitude_of_the_first(device: Device, programs: Programs) -> None:
    """A stream of zeros stays one."""
    given = STREAMS.copy()
    given[2, 3 * WIDTH :] = 0
    streams = upload(device, given)
    run(device, programs, TOKENS, lambda tape: match(tape, N, streams))
    expected = by_stream(given)
    squares = np.maximum((expected**2).mean(2, keepdims=True), 1e-5)
    expected[:, 1:] *= np.sqrt(squares[:, :1] / squares[:, 1:])
    result = by_stream(read(streams, None, device.queue))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)


def test_factors_of_another_number_of_streams(device: Device, programs: Programs) -> None:
    streams, logits, weights = (upload(device, x) for x in (STREAMS, LOGITS, random(4, N, N)))
    with pytest.raises(ValueError, match=r"factors of \(4, 4\) for 4 streams, expected \(16, 4\)"):
        run(
            device, programs, TOKENS,
            lambda tape: predict(
                tape, streams, logits, weights, streams, empty(device, X.shape)
            ),
        )  # fmt: skip
