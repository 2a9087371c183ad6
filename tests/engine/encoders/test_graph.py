"""What encoders say and what is made of it: sums, views of rows, memory, constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import upload
from gguf_serve.kernels.quantization.weights import pack, raw_matrix

Floats = npt.NDArray[np.float32]
N, WIDTH = 6, 64
RNG = np.random.default_rng(7)
X = RNG.standard_normal((N, WIDTH), dtype=np.float32)
W = RNG.standard_normal((2, WIDTH, WIDTH), dtype=np.float32) / 8
NO_WEIGHTS: Any = None  # a graph whose function brings its own


@pytest.fixture
def graph(device: Device, programs: Programs) -> Graph:
    return Graph(NO_WEIGHTS, device, programs)


@pytest.fixture
def linear(device: Device, programs: Programs) -> Callable[..., Linear]:
    def make(weights: Floats, kind: str = "F32") -> Linear:
        raw = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind])
        data = np.ascontiguousarray(raw).view(np.uint8).reshape(-1)
        return Linear(pack(device, programs, [raw_matrix(data, kind, *weights.shape)]))

    return make


def result(graph: Graph, out: Rows, *inputs: Floats) -> tuple[Floats, list[str]]:
    """The result for these inputs, and the launches' names."""
    graph.finish(out)
    return graph.run(inputs), [name.partition("(")[0] for name in graph.kernel_names]


def test_a_residual_is_added_by_the_matrix_before_it(
    graph: Graph, linear: Callable[..., Linear]
) -> None:
    first, second = (linear(w) for w in W)
    x = graph.input(N, WIDTH)
    for _ in range(2):
        x = graph.add(x, graph.linear(graph.activate(graph.linear(x, first), "relu"), second))
    found, launches = result(graph, x, X)
    expected = X
    for _ in range(2):
        expected = expected + np.maximum(expected @ W[0].T, 0) @ W[1].T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert launches == ["matmul", "activate", "matmul"] * 2


def test_rows_that_are_read_later_are_not_written_over(graph: Graph) -> None:
    x = graph.input(N, WIDTH)
    twice = graph.add(x, x)
    found, _ = result(graph, graph.add(twice, x), X)
    np.testing.assert_allclose(found, 3 * X, rtol=1e-6)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_views_of_rows(graph: Graph, linear: Callable[..., Linear], kind: str) -> None:
    """Rows joined or cut, the first ones, columns: whatever a matrix reads of them."""
    whole = linear(W[0], kind)
    x = graph.input(2 * N, WIDTH // 2)  # cut at half a row
    joined = graph.linear(x.reshaped(N), whole)
    left, right = graph.linear(x.reshaped(N).first(4), whole).split(32, 32)
    half = linear(np.ascontiguousarray(W[1][:, :32]), kind)
    parts = [graph.linear(right, half), graph.linear(left, half), joined.first(4)]
    found, _ = result(graph, graph.side_by_side(parts), X.reshape(2 * N, -1))
    y = (X @ W[0].T)[:4]
    expected = np.concatenate([y[:, 32:] @ W[1][:, :32].T, y[:, :32] @ W[1][:, :32].T, y], axis=1)
    tolerance = 1e-4 if kind == "F32" else 0.05
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_constants(graph: Graph, linear: Callable[..., Linear], kind: str) -> None:
    """They are read by matrices as other rows are, and nothing is written over them."""
    constant, bias = graph.constant(X), graph.constant(X[:1])
    total = graph.add(graph.add(constant, graph.input(N, WIDTH)), bias)
    total = graph.add(total, graph.linear(constant, linear(W[0], kind)))
    graph.finish(total)
    for factor in (1, 2):
        expected = X + factor * X + X[:1] + X @ W[0].T
        tolerance = 1e-4 if kind == "F32" else 0.05
        np.testing.assert_allclose(graph.run([factor * X]), expected, rtol=0.05, atol=tolerance)


def test_columns_are_scaled(graph: Graph, device: Device) -> None:
    x = graph.input(N, WIDTH)
    found, launches = result(graph, graph.add(x, x, scale=upload(device, X[0])), X)
    np.testing.assert_allclose(found, X + X * X[:1], rtol=1e-5, atol=1e-6)
    assert launches == ["norm", "mix_rows"]  # x is read while it would be written over


def test_rows_take_turns_in_memory(
    graph: Graph, linear: Callable[..., Linear], device: Device
) -> None:
    """Two rows live at a time."""
    matrices, n = [linear(w) for w in W], 1024
    x, before = graph.input(n, WIDTH), device.usage.n_bytes
    for _ in range(20):
        for matrix in matrices:
            x = graph.linear(x, matrix)
    graph.finish(x)
    assert device.usage.n_bytes - before < 2.5 * 4 * n * WIDTH
