"""The kernels that measure do all that is counted, and launches are timed one by one."""

from __future__ import annotations

import time

import numpy as np
import pyopencl as cl
import pytest

from gguf_serve.kernels import profile
from gguf_serve.kernels.attention.kv import KVPages, KVShape
from gguf_serve.kernels.matrix.matmul import glu, matmul
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import OUTPUTS, TOKENS, Tape
from gguf_serve.kernels.opencl.tensor import empty, read, upload, zeros
from gguf_serve.kernels.profile import measure_limits, time_step, touch_pages
from gguf_serve.kernels.quantization.activations import Activations, activations
from gguf_serve.kernels.quantization.weights import RawMatrix, pack, raw_matrix
from gguf_serve.kernels.rows.norm import NormWeights, norm


@pytest.mark.parametrize("contiguous", [True, False])
def test_reading_reads_everything(device: Device, programs: Programs, contiguous: bool) -> None:
    wide = device.info.kind == "cpu"
    width, n_items, n_each = (16 if wide else 4), 6, 8
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 1 << 32, (n_items * n_each, width), np.uint32)
    x, out = upload(device, numbers), empty(device, (n_items, width), np.uint32)
    kernel = programs.kernel("limits.cl", "read_memory", profile._defines(device))
    first, stride = (n_each, 1) if contiguous else (1, n_items)
    kernel.set_args(
        x.buffer, np.uint64(n_each), np.uint64(first), np.uint64(stride), out.buffer
    )  # fmt: skip
    cl.enqueue_nd_range_kernel(device.queue, kernel, (n_items,), (1,))
    found = np.bitwise_xor.reduce(read(out, None, device.queue), axis=0)
    assert found.tolist() == np.bitwise_xor.reduce(numbers, axis=0).tolist()


@pytest.mark.parametrize("n", [0, 1, 5])
def test_multiplying_does_as_many_as_are_counted(
    device: Device, programs: Programs, n: int
) -> None:
    chains = profile._chains(device)
    out = empty(device, (16,))
    kernel = programs.kernel("limits.cl", "multiply_add", profile._defines(device))
    kernel.set_args(np.int32(n), np.float32(2), np.float32(3), out.buffer)
    cl.enqueue_nd_range_kernel(device.queue, kernel, (1,), (1,))
    found = read(out, None, device.queue)
    if not device.is_simd:
        sums = 2.0 + np.arange(chains)
        for _ in range(n):
            sums = sums * 2 + 3
        assert found[0] == sums.sum()
        return
    # An int c + 2 of a vector is a pair of shorts (c + 2, 0).
    expected = sum((c + 2) * (3 + i) for c in range(chains) for i in range(n))
    assert found.tolist() == [expected] * 16


def test_limits_are_plausible(
    device: Device, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "READ_BYTES", 16 << 20)
    limits = measure_limits(device, programs)
    assert 1e8 < limits.bytes_per_second < 1e14
    assert 1e8 < limits.macs_per_second < 1e16


class Recorded:
    """A norm of no rows, a norm, a matrix of 48 x 64 and a paired one of 128 x 64."""

    def __init__(self, device: Device, programs: Programs) -> None:
        rng = np.random.default_rng(2)

        def weights(rows: int) -> RawMatrix:
            values = rng.standard_normal(rows * 64).astype(np.float32)
            return raw_matrix(values.view(np.uint8), "F32", rows, 64)

        # A recording does not keep the memory that its kernels use.
        self.x = upload(device, rng.standard_normal((5, 64)).astype(np.float32))
        self.counts = upload(device, np.array([5, 0, 0, 0], np.int32))
        self.normed = Activations(64, values=empty(device, (5, 64)))
        self.out = zeros(device, (5, 48))
        self.hidden = activations(device, 5, 64, quantized=False)
        self.single = pack(device, programs, [weights(48)])
        self.paired = pack(device, programs, [weights(64), weights(64)], paired=True)
        self.tape = Tape(device, programs)
        for count in (OUTPUTS, TOKENS):
            norm(self.tape, self.x, NormWeights(None, 0.0), self.normed, count=count)
        matmul(self.tape, self.single, self.normed, self.out, self.counts, tile=8)
        glu(
            self.tape, self.paired, self.normed, self.hidden, self.counts, activation="silu", tile=8
        )


def test_launches_know_their_work(device: Device, programs: Programs) -> None:
    recorded = Recorded(device, programs)
    work = [launch.work for launch in recorded.tape.launches if launch.work.weight_bytes]
    assert [w.weight_bytes for w in work] == [48 * 64 * 4, 128 * 64 * 4]
    assert [w.multiply_adds((5, 0, 0, 0), []) for w in work] == [5 * 48 * 64, 5 * 128 * 64]


def test_every_launch_is_timed(device: Device, programs: Programs) -> None:
    recorded = Recorded(device, programs)
    began = time.perf_counter()
    times = time_step(recorded.tape, (5, 0, 0, 0))
    passed = time.perf_counter() - began
    launched = [launch for launch, _ in times.launches]
    assert launched == recorded.tape.launches[1:], "the norm of no rows is not launched"
    assert all(seconds > 0 for _, seconds in times.launches)
    assert times.seconds > 0
    assert times.seconds + sum(seconds for _, seconds in times.launches) < passed
    assert read(recorded.out, None, device.queue).all(), "and they did their work"


def test_pages_are_written_up_to_a_number(device: Device) -> None:
    pages = KVPages(device, [KVShape(1, 16, 16)] * 2, 3, "f16", "f32")
    for layer in pages.layers:
        for tensor in (*layer.k.slabs, *layer.v.slabs):
            cl.enqueue_fill_buffer(
                device.queue, tensor.buffer, np.zeros(1, np.uint8), 0, tensor.n_bytes
            )  # fmt: skip
    touch_pages(device, pages, 2)
    for layer in pages.layers:
        for tensor in (*layer.k.slabs, *layer.v.slabs):
            found = read(tensor, None, device.queue)
            assert (found[:2] == 1).all()
            assert not found[2].any()


def test_a_ring_may_have_fewer_pages(device: Device) -> None:
    pages = KVPages(device, [KVShape(1, 16, 16)] * 2, 3, "f16", "f16", rings=(2, 0))
    touch_pages(device, pages, 3)
    for layer, n in zip(pages.layers, (2, 3), strict=True):
        found = read(layer.k.slabs[0], None, device.queue)
        assert found.shape[0] == n
        assert (found == 1).all()
