"""The choice of experts, their matrices, and the sum, against NumPy in double precision."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from launching import quantized, run

from gguf_serve.kernels.matrix.matmul import RowGroups, glu, matmul
from gguf_serve.kernels.matrix.moe import (
    Routing,
    Scoring,
    TokenExperts,
    combine,
    route,
    routing_buffers,
)
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import N_COUNTS, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, empty, read, upload
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.quantization.weights import (
    Matrix,
    RawMatrix,
    place_experts,
    raw_matrix,
    run_job,
)
from gguf_serve.kernels.rows.norm import NormWeights, norm

N_EXPERTS, USED, N_EMBD, N_FF = 8, 3, 64, 96
Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


def sigmoid(x: Doubles) -> Doubles:
    return 1 / (1 + np.exp(-x))


def softmax(x: Doubles) -> Doubles:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def routed(
    device: Device,
    programs: Programs,
    logits: Floats,
    routing: Routing,
    tile: int,
    bias: Floats | None = None,
    scales: Floats | None = None,
) -> tuple[npt.NDArray[np.int32], Floats, tuple[RowGroups, RowGroups]]:
    """The experts of each token, sorted by id, with their weights; and the rows of both."""
    n = len(logits)
    buffers = routing_buffers(device, n, routing.n_experts, routing.used)
    counts = upload(device, np.full(N_COUNTS, n, np.int32))
    rows: list[tuple[RowGroups, RowGroups]] = []
    scores = upload(device, logits)
    added, factors = (None if x is None else upload(device, x) for x in (bias, scales))
    run(
        device, programs, n,
        lambda tape: rows.append(
            route(tape, scores, routing, buffers, counts, tile=tile, bias=added, scales=factors)
        ),
    )  # fmt: skip
    experts = read(buffers.experts, None, device.queue).reshape(n, -1)
    weights = read(buffers.weights, None, device.queue).reshape(n, -1)
    order = np.argsort(experts, axis=1)
    taken = np.take_along_axis
    return taken(experts, order, 1), taken(weights, order, 1), rows[0]


@pytest.mark.parametrize("tile", [1, 8])
def test_experts_by_a_table_of_tokens(device: Device, programs: Programs, tile: int) -> None:
    """Their weights are by the router's logits, whatever it would have chosen."""
    rng, n = np.random.default_rng(6), 1 if tile == 1 else 7
    logits = rng.standard_normal((n, N_EXPERTS), dtype=np.float32)
    table = np.array([rng.permutation(N_EXPERTS)[:USED] for _ in range(20)], np.int32)
    ids = rng.integers(20, size=n).astype(np.int32)
    buffers = routing_buffers(device, n, N_EXPERTS, USED)
    routing = Routing(N_EXPERTS, USED, "sqrt_softplus", normalize=True)
    by_token = TokenExperts(upload(device, table), upload(device, ids))
    scores, counts = upload(device, logits), upload(device, np.full(N_COUNTS, n, np.int32))
    run(
        device, programs, n,
        lambda tape: route(tape, scores, routing, buffers, counts, tile=tile, table=by_token),
    )  # fmt: skip
    assert np.array_equal(read(buffers.experts, None, device.queue).reshape(n, -1), table[ids])
    gates = np.sqrt(np.log1p(np.exp(logits.astype(np.float64))))
    exact = np.take_along_axis(gates, table[ids], 1)
    exact /= exact.sum(1, keepdims=True)
    weights = read(buffers.weights, None, device.queue).reshape(n, -1)
    assert np.abs(weights - exact).max() <= 1e-6


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "softmax_chosen", "sqrt_softplus"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_choice_and_weights(
    device: Device, programs: Programs, scoring: Scoring, normalize: bool, biased: bool
) -> None:
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((5, N_EXPERTS), dtype=np.float32)
    bias = rng.standard_normal(N_EXPERTS, dtype=np.float32) if biased else None
    routing = Routing(N_EXPERTS, USED, scoring, normalize, scale=1.5)
    experts, weights, _ = routed(device, programs, logits, routing, 8, bias)
    exact = logits.astype(np.float64)
    scores = {
        "softmax": softmax(exact), "sigmoid": sigmoid(exact), "softmax_chosen": exact,
        "sqrt_softplus": np.sqrt(np.log1p(np.exp(exact))),
    }[scoring]  # fmt: skip
    choice = scores if bias is None else scores + bias
    expected = np.sort(np.argsort(-choice, axis=1)[:, :USED], axis=1)
    assert np.array_equal(experts, expected)
    found = np.take_along_axis(scores, expected, 1)
    if scoring == "softmax_chosen":
        found = softmax(found)
    elif normalize:
        found = found / found.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights, 1.5 * found, rtol=1e-5)


@pytest.mark.parametrize("tile", [1, 8])
def test_scales_of_experts(device: Device, programs: Programs, tile: int) -> None:
    """They multiply a token's weights, and do not count among these before."""
    rng = np.random.default_rng(4)
    logits = rng.standard_normal((1 if tile == 1 else 5, N_EXPERTS), dtype=np.float32)
    routing = Routing(N_EXPERTS, USED, normalize=True)
    scales = rng.random(N_EXPERTS, dtype=np.float32) + 1
    experts, plain, _ = routed(device, programs, logits, routing, tile)
    found, weights, _ = routed(device, programs, logits, routing, tile, scales=scales)
    assert np.array_equal(found, experts)
    np.testing.assert_allclose(weights, plain * scales[experts], rtol=1e-6)


def test_only_the_best_groups_take_part(device: Device, programs: Programs) -> None:
    """Groups are ranked by the sum of their two best experts."""
    logits = np.array([[9, -9, -9, -9, 5, 5, 1, 1], [0, 1, 2, 3, 4, 5, 6, 7]], np.float32)
    routing = Routing(8, 2, "sigmoid", groups=(4, 1))
    experts, _, _ = routed(device, programs, logits, routing, 8)
    assert experts.tolist() == [[4, 5], [6, 7]]


@pytest.mark.parametrize("n_experts", [60, 160])
@pytest.mark.parametrize("n_groups", [1, 4])
def test_of_equal_experts_the_first_are_chosen(
    device: Device, programs: Programs, n_experts: int, n_groups: int
) -> None:
    logits = np.random.default_rng(5).integers(0, 9, (3, n_experts)).astype(np.float32)
    groups = logits.reshape(3, n_groups, -1)
    best = np.sort(groups, axis=2)[..., -2:].sum(2)
    # Of equal groups the last is the first to go.
    order = np.argsort(-best, axis=1, kind="stable")[:, : max(n_groups // 2, 1)]
    allowed = np.zeros((3, n_groups, 1), bool)
    np.put_along_axis(allowed, order[..., None], True, 1)
    choice = np.where(allowed, groups, -1).reshape(3, -1)
    routing = Routing(n_experts, 7, "sigmoid", groups=(n_groups, max(n_groups // 2, 1)))
    experts, weights, _ = routed(device, programs, logits, routing, 8)
    expected = np.sort(np.argsort(-choice, axis=1, kind="stable")[:, :7], axis=1)
    assert np.array_equal(experts, expected)
    gates = sigmoid(np.take_along_axis(logits.astype(np.float64), expected, 1))
    np.testing.assert_allclose(weights, gates, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 7, 40])
@pytest.mark.parametrize("tile", [1, 8, 32])
def test_tiles_hold_every_slot_once(device: Device, programs: Programs, n: int, tile: int) -> None:
    if tile == 1 and n > 1:
        pytest.skip("one token at a time")
    logits = np.random.default_rng(n).standard_normal((n, N_EXPERTS), dtype=np.float32)
    experts, _, (into, out_of) = routed(device, programs, logits, Routing(N_EXPERTS, USED), tile)
    n_tiles = into.grid.size((n,) * N_COUNTS)
    tiles = read(into.tiles, n_tiles, device.queue)
    in_rows, slots = (read(t, None, device.queue) for t in (into.in_rows, into.out_rows))
    assert np.array_equal(read(out_of.in_rows, None, device.queue), slots)
    seen = []
    for expert, first, count, _ in tiles:
        assert count <= tile
        for i in range(first, first + count):
            token = slots[i] // USED
            assert in_rows[i] == token
            assert expert in experts[token]
            seen.append(slots[i])
    assert sorted(seen) == list(range(n * USED))


def packed(
    device: Device, programs: Programs, kind: str, *parts: npt.NDArray[np.float32]
) -> tuple[Matrix, list[Doubles]]:
    """Experts' matrices of a type, and what their values are in it."""
    raws: list[list[RawMatrix]] = []
    exact = []
    for part in parts:
        n_rows, n_cols = part.shape[1:]
        blocks = quantize(part, GGMLQuantizationType[kind])
        exact.append(dequantize(blocks, GGMLQuantizationType[kind]).astype(np.float64))
        raws.append(
            [
                raw_matrix(np.ascontiguousarray(b).view(np.uint8).reshape(-1), kind, n_rows, n_cols)
                for b in blocks
            ]
        )
    matrix, jobs = place_experts(device, *raws)
    for job in jobs:
        run_job(device, programs, job)
    return matrix, exact


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize(("n", "tile"), [(1, 1), (7, 8), (40, 32)])
def test_a_whole_layer(device: Device, programs: Programs, kind: str, n: int, tile: int) -> None:
    rng = np.random.default_rng(5)
    gate, up = rng.standard_normal((2, N_EXPERTS, N_FF, N_EMBD), dtype=np.float32) / 8
    down = rng.standard_normal((N_EXPERTS, N_EMBD, N_FF), dtype=np.float32) / 8
    x = rng.standard_normal((n, N_EMBD), dtype=np.float32)
    logits = rng.standard_normal((n, N_EXPERTS), dtype=np.float32)
    first, (gate_, up_) = packed(device, programs, kind, gate, up)
    last, (down_,) = packed(device, programs, kind, down)
    routing, counts = Routing(N_EXPERTS, USED), upload(device, np.full(N_COUNTS, n, np.int32))
    buffers = routing_buffers(device, n, N_EXPERTS, USED)
    hidden = Activations(N_FF, empty(device, (n * USED, N_FF)))
    y, out = empty(device, (n * USED, N_EMBD)), upload(device, np.ones((n, N_EMBD), np.float32))
    on_device, scores = Activations(N_EMBD, upload(device, x)), upload(device, logits)
    if kind != "F32":
        on_device = quantized(device, programs, x)

    def record(tape: Tape) -> None:
        into, out_of = route(tape, scores, routing, buffers, counts, tile=tile)
        glu(tape, first, on_device, hidden, counts, activation="silu", tile=tile, experts=into)
        matmul(tape, last, hidden, y, counts, tile=tile, experts=out_of)
        combine(tape, y, out, weights=buffers.weights, used=USED, scale=0.5, add=True)

    run(device, programs, n, record)
    result = read(out, None, device.queue)
    probabilities = softmax(logits.astype(np.float64))
    expected = np.ones((n, N_EMBD))
    for t in range(n):
        for e in np.argsort(-probabilities[t])[:USED]:
            g, u = gate_[e] @ x[t], up_[e] @ x[t]
            expected[t] += 0.5 * probabilities[t, e] * (down_[e] @ (g * sigmoid(g) * u))
    np.testing.assert_allclose(result, expected, atol=2e-4 if kind != "F32" else 1e-5)


def test_what_every_token_takes(device: Device, programs: Programs) -> None:
    rng = np.random.default_rng(6)
    n = 5
    y = rng.standard_normal((n * 2, 40), dtype=np.float32)
    extra = rng.standard_normal((n, 40), dtype=np.float32)
    gate = rng.standard_normal((n, 1), dtype=np.float32)
    out: Tensor = empty(device, (n, 40))
    tensors = [upload(device, a) for a in (y, extra, gate)]
    run(
        device, programs, n,
        lambda tape: combine(
            tape, tensors[0], out, extra=tensors[1], gate=tensors[2], used=2, scale=2.0
        ),
    )  # fmt: skip
    expected = 2 * (y.reshape(n, 2, 40).sum(axis=1) + extra * sigmoid(gate.astype(np.float64)))
    np.testing.assert_allclose(read(out, None, device.queue), expected, atol=1e-5)


@pytest.mark.parametrize("used", [1, USED])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_one_token_s_sum_by_the_product(
    device: Device, programs: Programs, kind: str, used: int
) -> None:
    """On a CPU the experts' last matrices add up what they yield, and normalize the sum, with the
    bits of launches of their own."""
    rng = np.random.default_rng(7)
    down = rng.standard_normal((N_EXPERTS, N_EMBD, N_FF), dtype=np.float32)
    hidden_, stream = (
        rng.standard_normal(s, dtype=np.float32) for s in ((used, N_FF), (1, N_EMBD))
    )
    w, _ = packed(device, programs, kind, down)
    hidden = Activations(N_FF, upload(device, hidden_))
    if kind != "F32":
        hidden = quantized(device, programs, hidden_)
    scores = upload(device, rng.standard_normal((1, N_EXPERTS), dtype=np.float32))
    routing, counts = Routing(N_EXPERTS, used), upload(device, np.ones(N_COUNTS, np.int32))
    buffers = routing_buffers(device, 1, N_EXPERTS, used)
    weights = NormWeights(upload(device, rng.standard_normal(N_EMBD, dtype=np.float32)), 1e-5)

    def outcome(*, apart: bool) -> tuple[list[bytes], int]:
        y, out = empty(device, (used, N_EMBD)), upload(device, stream)
        after = Activations(N_EMBD, empty(device, (1, N_EMBD)))
        tapes = [Tape(device, programs) for _ in range(3)]
        first, second, third = tapes if apart else [tapes[0]] * 3
        _, out_of = route(first, scores, routing, buffers, counts, tile=1)
        matmul(first, w, hidden, y, counts, tile=1, experts=out_of)
        combine(second, y, out, weights=buffers.weights, used=used, add=True, by_product=True)
        norm(third, out, weights, after)
        for tape in tapes:
            tape.run((1,) * N_COUNTS)
        found = [read(t, None, device.queue).tobytes() for t in (out, after.values) if t]
        return found, sum(len(tape.launches) for tape in tapes)

    expected, n = outcome(apart=True)
    assert n == 4
    found, n = outcome(apart=False)
    assert n == (2 if device.is_simd else 4)
    assert found == expected
