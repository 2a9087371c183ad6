"""What the recorder decides: forms of rows, copies, memory, the place of the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from recorded import OUT, WIDTH, Function, Written, X, context, linear, matrices, normed_like, run

from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.kernels.matrix.moe import combine
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import upload
from gguf_serve.kernels.rows.norm import NormWeights

__all__ = ["context", "matrices"]


def test_a_result_is_added_to_the_stream(
    device: Device, programs: Programs, context: Any, matrices: Any
) -> None:
    arrays, (a, b, *_) = matrices

    def function(g: Graph, x: Rows) -> Rows:
        return g.linear(g.linear(x, a), b, scale=0.5)

    result, launches = run(device, programs, context, function)
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

    written = Written(programs, [context], function)
    first, second, third, product = map(written.memory, seen)
    assert first is third  # nobody reads the first any more
    assert second is not third  # which is read when it is written
    assert product is third  # what it multiplies
    result, _ = written.run()
    made = X @ arrays[0].T @ arrays[1].T
    expected = OUT + (np.maximum(made, 0) * (made @ arrays[2].T)) @ arrays[3].T
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


def test_sublayers_take_turns_in_the_same_memory(
    programs: Programs, context: Any, matrices: Any
) -> None:
    _, (a, b, *_) = matrices

    def repeated(n: int) -> Function:
        def function(g: Graph, x: Rows) -> Rows:
            for _ in range(n):
                x = g.add(x, g.linear(g.linear(x, a), b)) if n > 1 else g.linear(g.linear(x, a), b)
            return x

        return function

    sizes = [Written(programs, [context], repeated(n)).n_bytes for n in (2, 5)]
    assert sizes[0] == sizes[1]


def test_what_comes_early_reads_what_the_layer_reads(
    device: Device, programs: Programs, context: Any, matrices: Any
) -> None:
    """Though the stream has changed by then."""
    arrays, (a, b, c, _) = matrices

    def function(g: Graph, x: Rows) -> Rows:
        x = g.add(x, g.linear(x, c))
        with g.early() as stream:
            gate = g.linear(stream, a)
        return g.linear(g.activate(gate, "relu", times=x), b)

    result, launches = run(device, programs, context, function)
    changed = X + X @ arrays[2].T
    expected = OUT + (np.maximum(X @ arrays[0].T, 0) * changed) @ arrays[1].T
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)
    assert launches == ["matmul", "matmul", "combine", "activate", "matmul"]


def test_a_sum_does_not_change_what_is_read_later(
    device: Device, programs: Programs, context: Any, matrices: Any
) -> None:
    arrays, (a, *_) = matrices

    def function(g: Graph, x: Rows) -> Rows:
        first = g.linear(x, a)
        second = g.add(first, g.linear(first, a))
        return g.add(second, first)

    result, launches = run(device, programs, context, function)
    first = X @ arrays[0].T
    np.testing.assert_allclose(
        result, OUT + 2 * first + first @ arrays[0].T, rtol=1e-3, atol=1e-3
    )  # fmt: skip
    assert launches == ["matmul", "matmul", "combine", "combine", "combine"]


def test_the_next_norm_carries_out_the_one_of_what_is_added(
    device: Device, programs: Programs, context: Any, matrices: Any
) -> None:
    arrays, (a, b, *_) = matrices
    ones = NormWeights(upload(device, np.ones(WIDTH, np.float32)), 1e-5)

    def function(g: Graph, x: Rows) -> Rows:
        first = g.linear(x, a)
        second = g.add(first, g.norm(g.linear(g.norm(first, ones), b), ones))
        return g.add(second, g.linear(g.norm(second, ones), a))

    result, launches = run(device, programs, context, function)
    first = X @ arrays[0].T
    second = first + normed_like(normed_like(first) @ arrays[1].T)
    expected = OUT + second + normed_like(second) @ arrays[0].T
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)
    assert launches == ["matmul", "norm", "matmul", "norm", "matmul", "combine"]


def test_only_wanted_rows_go_on_after_the_last_mixer(
    device: Device, programs: Programs, context: Any, matrices: Any
) -> None:
    arrays, (a, b, *_) = matrices
    ones = NormWeights(upload(device, np.ones(WIDTH, np.float32)), 1e-5)

    def mixed(g: Graph, x: Rows) -> Rows:
        """Stands for attention."""
        out = g.rows(WIDTH)
        g.launch(
            lambda e: combine(e.tape, e.floats(x), e.floats(out)), reads=[x], writes=[out],
            mixes=True,
        )  # fmt: skip
        return out

    def function(g: Graph, x: Rows) -> Rows:
        x = mixed(g, x)
        x = g.add(x, g.linear(g.norm(x, ones), a))
        return g.linear(g.norm(g.wanted(x), ones), b)

    wanted = [5, 2, 7]
    context.inputs.rows = upload(device, np.array(wanted, np.int32))
    results = {}
    for few in (False, True):
        written = Written(programs, [context], function, few=few)
        results[few], launches = written.run(len(wanted))
        of_rows = [launch.of_rows for launch in written.plan.launches]
        assert launches == ["combine", *(["norm"] * (1 + few)), "matmul", "norm", "matmul"]
        assert of_rows.count(True) == (4 if few else 1)
    stream = X + normed_like(X) @ arrays[0].T
    expected = OUT[:3] + (normed_like(stream) @ arrays[1].T)[wanted]
    for result in results.values():
        np.testing.assert_allclose(result[:3], expected, rtol=1e-3, atol=1e-3)


def test_rows_are_carried_to_the_device_that_reads_them(
    device: Device, programs: Programs, context: Any, matrices: Any
) -> None:
    """Once, and again when they have changed."""
    arrays, (a, b, *_) = matrices

    def function(g: Graph, x: Rows) -> Rows:
        first = g.linear(x, a)
        with g.on(1):
            made = g.add(g.linear(first, b), g.linear(first, a))
        return g.linear(made, b)

    written = Written(programs, [context] * 2, function, devices=(0, 1))
    result, _ = written.run()
    first = X @ arrays[0].T
    expected = OUT + (first @ arrays[1].T + first @ arrays[0].T) @ arrays[1].T
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)
    assert [launch.at for launch in written.plan.launches if launch.source] == [1, 0]


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
    _, launches = run(device, programs, context, bare)
    assert launches == ["matmul", *copies, "matmul"]
    result, launches = run(device, programs, context, normed)
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

    result, launches = run(device, programs, context, function)
    expected = OUT + (X @ arrays[0].T)[:, 32:] @ arrays[1][:, :32].T
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    assert launches == ["matmul", "norm", "matmul"]
