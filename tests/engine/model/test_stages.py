"""A model over several processes yields, bit for bit, what it yields in one.

Here the processes are threads with a device each, and wires are queues of pickled messages.
"""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance_data import reference
from stepping import Stepper, sequence

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.forward.following import follow
from gguf_serve.engine.forward.stages import Leading
from gguf_serve.engine.model.placement import Placement
from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.program import Programs

TABLE = [3, 7, 5, 9, 2, 11, 1, 0]
GONE = pickle.dumps("gone")
KINDS = ["llama-dense"]  # in three stages, the others in two
MORE_KINDS = [
    "gemma3-dense", "deepseek2-moe", "gemma4-e2b", "qwen4exp-moe", "command-r-dense",
    "smallthinker-moe", "arctic-moe", "qwen3moe-moe", "jamba-dense", "granitehybrid-dense",
    "qwen3next-moe", "hrm_text-dense", "kimi-k3-moe", "minimax-01-moe", "talkie-dense",
    "gpt-oss-moe", "mamba2-dense", "falcon-h1-dense", "lfm2-dense", "deepseek4-moe", "glm-dsa-moe",
    "mimo2-moe", "llama4-moe", "phi3-dense", "olmo2-dense", "bloom-dense", "qwen35-dense",
]  # fmt: skip


class QueueWire:
    """One end of two queues."""

    def __init__(self, out: queue.SimpleQueue[bytes], into: queue.SimpleQueue[bytes]) -> None:
        self._out, self._into = out, into

    def send(self, message: object) -> None:
        self._out.put(pickle.dumps(message))

    def receive(self, seconds: float | None = None) -> Any:
        try:
            data = self._into.get(timeout=seconds)
        except queue.Empty:
            return None
        if data == GONE:
            raise EngineError("gone")
        return pickle.loads(data)

    def on_loss(self, call: Callable[[str], None]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._out.put(GONE)


def wires(n: int) -> list[list[QueueWire | None]]:
    """Between each two of ``n`` stages, by stage and other stage."""
    queues = {(i, j): queue.SimpleQueue[bytes]() for i in range(n) for j in range(n)}
    return [
        [None if i == j else QueueWire(queues[i, j], queues[j, i]) for j in range(n)]
        for i in range(n)
    ]


def shares(n_stages: int) -> Callable[[int], Placement]:
    """As many layers to each stage, embedding and output layer to the first."""

    def place(n: int) -> Placement:
        layers = tuple(i * n_stages // n for i in range(n))
        return Placement(0, layers, layers, 0)

    return place


class Pipeline:
    """The first stage is ``first``, the others are threads."""

    def __init__(self, path: Path, devices: list[Device], **more: Any) -> None:
        n = len(devices)
        steppers = []
        self._wires = wires(n)
        for i, device in enumerate(devices):
            here = (device, Programs(device))
            metas = [device.meta() for _ in devices]
            placed = [here if j == i else (metas[j], Programs(metas[j])) for j in range(n)]
            between: list[Any] = list(self._wires[i])
            if i == 0:
                between[1:] = [Leading(wire, f"stage {j}") for j, wire in enumerate(between[1:])]
            steppers.append(
                Stepper(path, *placed[0], others=placed[1:], place=shares(n), wires=between, **more)
            )
        self.first = steppers[0]
        self._threads = [
            threading.Thread(target=self._follow, args=(stepper, i))
            for i, stepper in enumerate(steppers[1:], 1)
        ]
        for thread in self._threads:
            thread.start()

    def _follow(self, stepper: Stepper, i: int) -> None:
        wire = self._wires[i][0]
        assert wire is not None
        with pytest.raises(EngineError, match="gone"):
            follow(stepper.runner, wire)

    def close(self) -> None:
        for wire in self._wires[0][1:]:
            assert wire is not None
            wire.close()
        for thread in self._threads:
            thread.join(120)


@pytest.fixture(scope="module")
def devices() -> list[Device]:
    return [open_device(None, use_gpu=False) for _ in range(3)]


@pytest.fixture
def pipeline(
    devices: list[Device], conformance_model: Callable[[str], Path]
) -> Iterator[Callable[[str, int], Stepper]]:
    made: list[Pipeline] = []

    def make(name: str, n: int) -> Stepper:
        made.append(Pipeline(conformance_model(name), devices[:n]))
        return made[-1].first

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    "name", [*KINDS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_KINDS)]
)
def test_stages_are_as_one(
    devices: list[Device],
    conformance_model: Callable[[str], Path],
    pipeline: Callable[[str, int], Stepper],
    name: str,
) -> None:
    tokens, _ = reference(name)
    one = Stepper(conformance_model(name), devices[0], Programs(devices[0]))
    pipelined = pipeline(name, 2 if name in MORE_KINDS else 3)
    for counts in ([40] + [1] * 24, [7, 20, 37]):
        expected = one.run(sequence(tokens, 1, TABLE), counts)
        assert np.array_equal(pipelined.run(sequence(tokens, 1, TABLE), counts), expected)
