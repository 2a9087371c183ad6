"""What the recorder decides: forms of rows, copies, memory, the place of the result."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gguf_serve.engine.model.recording import Recording
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.memory import Layout, shared_blocks
from gguf_serve.engine.recording.planning import plan
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.step import Mode, Workspace
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.kernels.matrix.moe import combine
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import N_COUNTS
from gguf_serve.kernels.opencl.tensor import read, upload
from gguf_serve.kernels.quantization.weights import pack, raw_matrix
from gguf_serve.kernels.rows.norm import NormWeights

Floats = npt.NDArray[np.float32]
Function = Callable[[Graph, Rows], Rows]
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
    found = SimpleNamespace(
        h=SimpleNamespace(n_embd=WIDTH, residual_scale=1.0),
        device=device,
        workspace=Workspace(device, N),
        inputs=SimpleNamespace(counts=counts, adapter_scales=None),
        counts=counts,
    )  # fmt: skip
    found.of_rows = found
    return found


class Written:
    """What a function says, planned and recorded: it reads ``X``, and what it yields is added to
    ``OUT``."""

    def __init__(
        self, programs: Programs, contexts: Any, function: Function, *,
        few: bool = False, devices: tuple[int, ...] = (0,),
    ) -> None:  # fmt: skip
        graph, kinds = Graph(contexts, devices), [c.device for c in contexts]
        x, stream = (
            graph.keep(graph.rows(WIDTH), upload(kinds[0], a)) for a in (X, OUT.copy())
        )  # fmt: skip
        graph.begin_layer(x)
        self.out = graph.add(stream, function(graph, x))
        planned = plan(graph.launches, [self.out.value], wanted_only=few)
        layout = Layout(planned, kinds, N, N)
        self.plan = planned
        self.n_bytes = sum(map(sum, layout.sizes))
        self.held = layout.bind(shared_blocks([layout], kinds))
        places: Any = [
            SimpleNamespace(
                device=c.device, programs=programs, context=c, context_of_rows=c.of_rows,
                record_positions=lambda tape: None,
            )
            for c in contexts
        ]  # fmt: skip
        self.recording = Recording(places, Mode(8, "single", 8), planned, self.held)

    def memory(self, rows: Rows) -> Any:
        values = self.held[rows.value].values
        assert values is not None
        return values.buffer

    def run(self, n_wanted: int = N) -> tuple[Floats, list[str]]:
        """The result, and the launches' names."""
        self.recording.run([(N, n_wanted, N, 1, 1)] * 2)
        values = self.held[self.out.value].values
        (*_, (_, tape)) = self.recording.tapes
        found: Floats = read(values, None, tape.device.queue)
        names = [launch.name for _, tape in self.recording.tapes for launch in tape.launches]
        return found, [name.partition("(")[0] for name in names]


def run(
    device: Device, programs: Programs, context: Any, function: Function
) -> tuple[Floats, list[str]]:
    """What becomes of ``OUT`` to which the result is added, and the launches' names."""
    return Written(programs, [context], function).run()


@pytest.fixture
def matrices(device: Device, programs: Programs) -> tuple[list[Floats], list[Linear]]:
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / 8 for _ in range(4)]
    return arrays, [linear(device, programs, a) for a in arrays]


X = np.random.default_rng(4).standard_normal((N, WIDTH), dtype=np.float32)
OUT = np.random.default_rng(5).standard_normal((N, WIDTH), dtype=np.float32)


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


def normed_like(x: Floats) -> Floats:
    found: Floats = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5)
    return found


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
