"""What the recorder decides: forms of rows, copies, memory, the place of the result."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gguf_serve.engine.recording.graph import Graph, RecordedSublayer
from gguf_serve.engine.recording.recorder import Rows
from gguf_serve.engine.recording.step import Mode, Step, Workspace
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import N_COUNTS, Tape
from gguf_serve.kernels.opencl.tensor import read, upload
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.quantization.weights import pack, raw_matrix
from gguf_serve.kernels.rows.norm import NormWeights

Floats = npt.NDArray[np.float32]
N, WIDTH = 8, 64


def linear(device: Device, programs: Programs, weights: Floats, kind: str = "F32") -> Linear:
    import gguf

    raw = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind])
    data = np.ascontiguousarray(raw).view(np.uint8).reshape(-1)
    part = raw_matrix(data, kind, *weights.shape)
    return Linear(pack(device, programs, [part]))


@pytest.fixture
def context(device: Device) -> Any:
    counts = upload(device, np.full(N_COUNTS, N, np.int32))
    return SimpleNamespace(
        h=SimpleNamespace(n_embd=WIDTH, residual_scale=1.0),
        device=device,
        workspace=Workspace(device, N),
        inputs=SimpleNamespace(counts=counts, adapter_scales=None),
    )  # fmt: skip


def run(
    device: Device, programs: Programs, sublayer: RecordedSublayer, x: Floats, out: Floats
) -> tuple[Floats, list[str]]:
    """What becomes of ``out`` to which the sublayer adds, and the launches' names."""
    tape, result = Tape(device, programs), upload(device, out)
    step = Step(tape, Mode(8, "single", 8))
    given = upload(device, x)
    sublayer.prepare(step, given)
    sublayer.record(step, Activations(WIDTH, given), result, add=True)
    tape.run((N, N, N, 1, 1))
    found: Floats = read(result, None, device.queue)
    return found, [launch.name.partition("(")[0] for launch in tape.launches]


@pytest.fixture
def matrices(device: Device, programs: Programs) -> tuple[list[Floats], list[Linear]]:
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / 8 for _ in range(4)]
    return arrays, [linear(device, programs, a) for a in arrays]


X = np.random.default_rng(4).standard_normal((N, WIDTH), dtype=np.float32)
OUT = np.random.default_rng(5).standard_normal((N, WIDTH), dtype=np.float32)


def held(rows: Rows) -> Any:
    assert rows.value.held is not None
    return rows.value.held.values


def test_a_result_is_added_to_the_stream(
    device: Device, programs: Programs, context: Any, matrices: Any
) -> None:
    arrays, (a, b, *_) = matrices

    def function(g: Graph, x: Rows) -> Rows:
        return g.linear(g.linear(x, a), b, scale=0.5)

    result, launches = run(device, programs, RecordedSublayer(context, function), X, OUT)
    expected = OUT + 0.5 * X @ arrays[0].T @ arrays[1].T
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    assert launches == ["matmul", "matmul"]


def test_rows_that_are_read_later_keep_their_memory(
    device: Device, programs: Programs, context: Any, matrices: Any
) -> None:
    """Four rows of which two live at a time take the memory of two; a live one is not written
    over."""
    arrays, (a, b, c, d) = matrices
    seen: list[Rows] = []

    def function(g: Graph, x: Rows) -> Rows:
        first = g.linear(x, a)
        second = g.linear(first, b)
        third = g.linear(second, c)
        product = g.activate(second, "relu", times=third)
        seen.extend([first, second, third, product])
        return g.linear(product, d)

    sublayer = RecordedSublayer(context, function)
    first, second, third, product = (held(rows).buffer for rows in seen)
    assert first is third  # nobody reads the first any more
    assert second is not third  # which is read when it is written
    assert product is third  # what it multiplies
    result, _ = run(device, programs, sublayer, X, OUT)
    made = X @ arrays[0].T @ arrays[1].T
    expected = OUT + (np.maximum(made, 0) * (made @ arrays[2].T)) @ arrays[3].T
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


def test_sublayers_take_turns_in_the_same_memory(
    device: Device, context: Any, matrices: Any
) -> None:
    _, (a, b, *_) = matrices
    sizes = []
    for _ in range(2):
        RecordedSublayer(context, lambda g, x: g.linear(g.linear(x, a), b))
        sizes.append(device.usage.n_bytes)
    assert sizes[0] == sizes[1]


def test_what_comes_before_the_layer_is_apart_from_what_comes_between(
    device: Device, programs: Programs, context: Any, matrices: Any
) -> None:
    arrays, (a, b, *_) = matrices
    seen: list[Rows] = []

    def mixer(g: Graph, x: Rows) -> Rows:
        seen.append(g.linear(x, a))
        return g.linear(seen[-1], b)

    def ffn(g: Graph, x: Rows) -> Rows:
        with g.early() as stream:
            gate = g.linear(stream, a)
        seen.append(gate)
        return g.linear(g.activate(gate, "relu", times=x_of(g, x)), b)

    def x_of(g: Graph, x: Rows) -> Rows:
        return g.linear(x, a)

    RecordedSublayer(context, mixer)
    sublayer = RecordedSublayer(context, ffn)
    assert held(seen[0]).buffer is not held(seen[1]).buffer
    result, _ = run(device, programs, sublayer, X, OUT)
    made = X @ arrays[0].T
    expected = OUT + (np.maximum(made, 0) * made) @ arrays[1].T
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_rows_are_copied_where_a_writer_lacks_the_form(
    device: Device, programs: Programs, context: Any, matrices: Any, kind: str
) -> None:
    """A product writes floats only; a norm writes what the matrix reads."""
    arrays, (a, *_) = matrices
    b = linear(device, programs, arrays[1], kind)
    ones = NormWeights(upload(device, np.ones(WIDTH, np.float32)), 1e-5)

    def bare(g: Graph, x: Rows) -> Rows:
        return g.linear(g.linear(x, a), b)

    def normed(g: Graph, x: Rows) -> Rows:
        return g.linear(g.norm(g.linear(x, a), ones), b)

    copies = [] if kind == "F32" else ["norm"]
    _, launches = run(device, programs, RecordedSublayer(context, bare), X, OUT)
    assert launches == ["matmul", *copies, "matmul"]
    result, launches = run(device, programs, RecordedSublayer(context, normed), X, OUT)
    assert launches == ["matmul", "norm", "matmul"]
    made = X @ arrays[0].T
    made /= np.sqrt((made**2).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(result, OUT + made @ arrays[1].T, rtol=0.05, atol=0.05)


def test_columns_that_a_matrix_reads_are_copied(
    device: Device, programs: Programs, context: Any, matrices: Any
) -> None:
    arrays, (a, *_) = matrices
    narrow = linear(device, programs, arrays[1][:, :32].copy())

    def function(g: Graph, x: Rows) -> Rows:
        _, right = g.linear(x, a).split(32, 32)
        return g.linear(right, narrow)

    result, launches = run(device, programs, RecordedSublayer(context, function), X, OUT)
    expected = OUT + (X @ arrays[0].T)[:, 32:] @ arrays[1][:, :32].T
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    assert launches == ["matmul", "norm", "matmul"]
