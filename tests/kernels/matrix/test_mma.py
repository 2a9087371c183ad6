"""Products by instructions for tiles of halves, done by hand: no such GPU need be there.

What an instruction itself does is tried where it is (features.py); all around it is the same.
"""

from __future__ import annotations

import launching
import numpy as np
import numpy.typing as npt
import pytest
from launching import exact_activations, quantized, run
from msgspec.structs import replace
from opencl_devices import SIMT
from random_blocks import columns, random_matrix

from gguf_serve.kernels.matrix.matmul import RowGroups, glu, matmul
from gguf_serve.kernels.matrix.moe import Routing, route, routing_buffers
from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import N_COUNTS, Tape
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.quantization.quants import SUPPORTED_TYPES, by_name
from gguf_serve.kernels.quantization.weights import Matrix, pack, place_experts, run_job

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
HALF = 2.0**-11  # the rounding of one, relative to it
TILE = 32
QUANTIZED = [name for name in SUPPORTED_TYPES if not by_name(name).is_float]


@pytest.fixture(scope="module", params=SIMT)
def device(request: pytest.FixtureRequest) -> Device:
    index, family = request.param
    plain = open_device(index, family=family)
    forms = ("MMA_BY_HAND",)
    return replace(plain, capabilities=replace(plain.capabilities, forms=forms))


@pytest.fixture(scope="module")
def programs(device: Device) -> Programs:
    return Programs(device)


def product(device: Device, programs: Programs, w: Matrix, x: Floats, before: Floats) -> Floats:
    """``before`` plus the products of all tokens of x, in columns from the third on."""
    inputs, n = quantized(device, programs, x), len(x)
    return launching.product(device, programs, w, inputs, n, TILE, before, add=True, out_offset=3)


def bound_of(x: Doubles, w: Doubles) -> Doubles:
    """What rounding both factors to halves changes at most: relative, or where they are small
    beside the token's largest and the smallest normal half."""
    magnitude, small = np.abs(x) @ np.abs(w).T, np.abs(x).max(1, keepdims=True) * 2.0**-27
    found: Doubles = (
        2.01 * HALF * magnitude
        + small * np.abs(w).sum(1)
        + 2.0**-25 * np.abs(x).sum(1, keepdims=True)
    )
    return found


def check(result: Floats, expected: Doubles, bound: Doubles) -> None:
    __tracebackhide__ = True
    error = np.abs(result - expected)
    assert np.all(error <= bound), f"{(error / bound).max():.2f} times the bound"
    assert (error**2).mean() <= 1e-7 * (expected**2).mean()


@pytest.mark.parametrize("type_name", QUANTIZED)
def test_products_added_into_a_place_of_the_row(
    device: Device, programs: Programs, type_name: str
) -> None:
    """Of whole tiles of tokens and of a rest, of rows and blocks that fill none."""
    rng, n_rows = np.random.default_rng(1), 83
    raw, numbers = random_matrix(type_name, n_rows, columns(type_name), rng)
    w = pack(device, programs, [raw])
    for n in (67, 32):
        x = exact_activations(n, w.n_cols, rng)
        before = rng.standard_normal((n + 1, n_rows + 7), dtype=np.float32)
        result, added = product(device, programs, w, x, before), before[:n, 3:-4]
        bound = bound_of(x.astype(np.float64), numbers) + 2.0**-22 * np.abs(added)
        check(result[:n, 3:-4], x @ numbers.T + added, bound)
        result[:n, 3:-4] = added
        assert np.array_equal(result, before)


@pytest.mark.parametrize("factor", [0.0, 1e-30, 3e4, 1e30])
def test_activations_of_any_size(device: Device, programs: Programs, factor: float) -> None:
    """Beside a token that is not finite, which is nobody else's matter."""
    rng = np.random.default_rng(2)
    raw, numbers = random_matrix("Q8_0", 64, 96, rng)
    w = pack(device, programs, [raw])
    x = rng.standard_normal((33, 96), dtype=np.float32)
    x[::2] *= np.float32(factor)
    x[5, 40] = np.nan
    result = product(device, programs, w, x, np.zeros((33, 67), np.float32))[:, 3:]
    assert np.isnan(result[5]).all()
    finite = np.arange(33) != 5
    expected = x[finite].astype(np.float64) @ numbers.T
    bound = bound_of(x[finite].astype(np.float64), numbers)
    assert np.all(np.abs(result[finite] - expected) <= bound)


@pytest.mark.parametrize("width", [50, 96])
def test_gate_and_up(device: Device, programs: Programs, width: int) -> None:
    rng = np.random.default_rng(3)
    pair = [random_matrix("Q4_K", width, 512, rng) for _ in range(2)]
    w = pack(device, programs, [raw for raw, _ in pair], paired=True)
    x = exact_activations(67, 512, rng) * np.float32(0.01)
    biases = rng.standard_normal((2, width)).astype(np.float32)
    padded = np.zeros((2, -(-width // 32) * 32), np.float32)
    padded[:, :width] = biases
    bias = upload(device, padded.reshape(2, -1, 16).transpose(1, 0, 2).reshape(-1))
    room = upload(device, np.full((68, width), 7, np.float32))
    inputs, counts = quantized(device, programs, x), upload(device, np.full(N_COUNTS, 67, np.int32))
    run(
        device, programs, 67,
        lambda tape: glu(
            tape, w, inputs, Activations(width, room), counts, activation="silu", tile=TILE,
            bias=bias,
        ),
    )  # fmt: skip
    result: Floats = read(room, None, device.queue)
    gate, up = (
        x.astype(np.float64) @ numbers.T + b for (_, numbers), b in zip(pair, biases, strict=True)
    )
    expected = gate / (1 + np.exp(-gate)) * up
    assert ((result[:67] - expected) ** 2).mean() <= 1e-6 * (expected**2).mean()
    assert np.all(result[67:] == 7)


def test_experts(device: Device, programs: Programs) -> None:
    """Tiles of fewer tokens than there is room for, of rows that lie anywhere."""
    rng, n, n_experts, used = np.random.default_rng(4), 70, 4, 2
    parts = [random_matrix("Q4_0", 48, 64, rng) for _ in range(n_experts)]
    w, jobs = place_experts(device, [raw for raw, _ in parts])
    for job in jobs:
        run_job(device, programs, job)
    x = exact_activations(n, 64, rng)
    scores = rng.standard_normal((n, n_experts), dtype=np.float32)
    counts = upload(device, np.full(N_COUNTS, n, np.int32))
    buffers = routing_buffers(device, n, n_experts, used)
    out, inputs = empty(device, (n * used, 48)), quantized(device, programs, x)
    on_device = upload(device, scores)

    def record(tape: Tape) -> None:
        into: RowGroups
        into, _ = route(tape, on_device, Routing(n_experts, used), buffers, counts, tile=TILE)
        matmul(tape, w, inputs, out, counts, tile=TILE, experts=into)

    run(device, programs, n, record)
    result: Floats = read(out, None, device.queue)
    chosen = np.argsort(-scores, axis=1)[:, :used].reshape(-1)
    rows = x.astype(np.float64).repeat(used, axis=0)[:, None]
    weights = np.stack([parts[expert][1] for expert in chosen])
    expected = np.concatenate([row @ w.T for row, w in zip(rows, weights, strict=True)])
    bound = np.concatenate([bound_of(row, w) for row, w in zip(rows, weights, strict=True)])
    check(result, expected, bound)
