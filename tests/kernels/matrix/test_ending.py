"""A norm as the end of the product before it: for one token, on CPUs."""

from __future__ import annotations

import numpy as np
import pytest
from launching import quantized
from msgspec.structs import replace
from random_blocks import random_matrix

from gguf_serve.kernels.matrix.matmul import matmul
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import N_COUNTS, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, read, upload
from gguf_serve.kernels.quantization.activations import Activations, activations
from gguf_serve.kernels.quantization.weights import pack
from gguf_serve.kernels.rows.norm import NormWeights, PostNorm, norm

ROWS, COLUMNS = 512, 256
COUNTS = (1, 1, 1, 1, 1)


@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("form", ["floats", "integers", "bytes", "spans", "both"])
def test_the_last_work_item_normalizes_the_row(
    device: Device, programs: Programs, form: str, post: bool
) -> None:
    """The same bits as with a launch of its own, however the work-items end."""
    rng = np.random.default_rng(2)
    raw, _ = random_matrix("Q8_0", ROWS, COLUMNS, rng)
    w = pack(device, programs, [raw])
    x = quantized(device, programs, rng.standard_normal((1, COLUMNS), dtype=np.float32))
    stream = rng.standard_normal((1, ROWS), dtype=np.float32)
    weights = NormWeights(upload(device, rng.standard_normal(ROWS, dtype=np.float32)), 1e-5)
    counts = upload(device, np.ones(N_COUNTS, np.int32))

    def outcome(apart: bool) -> tuple[list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]], int]:
        out, y = upload(device, stream), upload(device, stream)
        made = (
            Activations(ROWS, upload(device, stream))
            if form == "floats"
            else activations(
                device, 1, ROWS, quantized=True, bytes=form == "bytes",
                spans=form in ("spans", "both"),
            )
        )  # fmt: skip
        if form == "both":
            made = replace(made, values=upload(device, stream))
        first, then = Tape(device, programs), Tape(device, programs)
        target = y if post else out
        matmul(first, w, x, target, counts, tile=1, add=not post)
        after = PostNorm(y, weights.weight, 1e-6) if post and weights.weight else None
        norm(then if apart else first, out, weights, made, post=after)
        for tape in (first, then):
            tape.run(COUNTS)
        results: list[Tensor | None] = [out, made.values, made.codes, made.scales]
        found = [read(t, None, device.queue) for t in results if t is not None]
        return found, len(first.launches) + len(then.launches)

    if form == "bytes" and not device.is_simd:
        pytest.skip("activations of 8 bits are for CPUs")
    expected, n = outcome(apart=True)
    assert n == 2
    for _ in range(50):
        found, n = outcome(apart=False)
        assert n == (1 if device.is_simd else 2)
        for a, b in zip(expected, found, strict=True):
            assert a.tobytes() == b.tobytes()


def test_not_where_something_comes_between(device: Device, programs: Programs) -> None:
    rng = np.random.default_rng(2)
    raw, _ = random_matrix("F32", 64, 64, rng)
    w = pack(device, programs, [raw])
    x, out, other = (upload(device, np.zeros((1, 64), np.float32)) for _ in range(3))
    counts = upload(device, np.ones(N_COUNTS, np.int32))
    weights = NormWeights(upload(device, np.ones(64, np.float32)), 1e-5)
    tape = Tape(device, programs)
    matmul(tape, w, Activations(64, x), out, counts, tile=1)
    norm(tape, other, weights, Activations(64, other))  # of other rows
    norm(tape, out, weights, Activations(64, other))
    matmul(tape, w, Activations(64, x), out, counts, tile=8)  # of several tokens
    norm(tape, out, weights, Activations(64, other))
    assert len(tape.launches) == 5
