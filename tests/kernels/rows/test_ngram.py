"""Gates of n-gram embeddings against NumPy."""

from __future__ import annotations

import numpy as np
from launching import run

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.rows.ngram import gate_ngrams


def test_gates(device: Device, programs: Programs) -> None:
    """Among them one of a product of 0."""
    rng, tokens, streams, columns = np.random.default_rng(7), 3, 2, 80
    key, query = rng.standard_normal((2, tokens, streams, columns)).astype(np.float32)
    query[1, 1] = 0
    value = rng.standard_normal((tokens, columns)).astype(np.float32)
    out = empty(device, (tokens, streams * columns))
    arrays = [upload(device, a.reshape(tokens, -1)) for a in (key, query, value)]
    run(device, programs, tokens, lambda tape: gate_ngrams(tape, *arrays, streams, out))
    s = (key.astype(np.float64) * query).sum(2) / np.sqrt(columns)
    root = np.where(s < 0, -1, 1) * np.sqrt(np.maximum(np.abs(s), 1e-6))
    expected = value[:, None] / (1 + np.exp(-root))[..., None]
    found = read(out, None, device.queue).reshape(tokens, streams, columns)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
