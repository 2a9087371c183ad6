"""Functions of the recording language, planned and run on a device by themselves.

``X`` is what they read, and ``OUT`` what their result is added to; the matrices that they use are
square. A test takes the fixtures ``context`` and ``matrices`` by importing them.
"""

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
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import N_COUNTS
from gguf_serve.kernels.opencl.tensor import read, upload
from gguf_serve.kernels.quantization.weights import pack, raw_matrix


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


@pytest.fixture
def matrices(device: Device, programs: Programs) -> tuple[list[Floats], list[Linear]]:
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / 8 for _ in range(4)]
    return arrays, [linear(device, programs, a) for a in arrays]


Floats = npt.NDArray[np.float32]
Function = Callable[[Graph, Rows], Rows]
N, WIDTH = 8, 64


def linear(device: Device, programs: Programs, weights: Floats, kind: str = "F32") -> Linear:
    import gguf

    raw = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind])
    data = np.ascontiguousarray(raw).view(np.uint8).reshape(-1)
    part = raw_matrix(data, kind, *weights.shape)
    return Linear(pack(device, programs, [part]))


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
                record_positions=lambda tape: None, wire=None,
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


X = np.random.default_rng(4).standard_normal((N, WIDTH), dtype=np.float32)
OUT = np.random.default_rng(5).standard_normal((N, WIDTH), dtype=np.float32)


def normed_like(x: Floats) -> Floats:
    """x, each row divided by its root mean square."""
    found: Floats = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5)
    return found
