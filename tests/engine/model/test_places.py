"""A model on two devices of different drivers yields what it yields on one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conformance_data import reference
from stepping import Stepper, nmse, sequence

from gguf_serve.engine.model.placement import Placement
from gguf_serve.engine.scheduling.page_cache import PageCopy
from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.platforms import list_devices
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.server.demo import demo_model

FLOAT_NMSE = 1e-7
TABLE = [3, 7, 5, 9, 2, 11, 1, 0]
KINDS = [
    "llama-dense", "gemma3-dense",  # norms after sublayers
    "deepseek2-moe",
    "gemma4-e2b",  # K and V of earlier layers, embeddings per layer
    "qwen4exp-moe",  # several streams, kept on one device
]  # fmt: skip
MORE_KINDS = [
    "command-r-dense",  # attention and FFN read the same rows
    "smallthinker-moe",  # the router reads what the layer before it yields
    "arctic-moe", "qwen3moe-moe", "jamba-dense", "granitehybrid-dense", "qwen3next-moe",
    "hrm_text-dense", "kimi-k3-moe", "minimax-01-moe",
    "talkie-dense",  # the embedding is added to every layer
]  # fmt: skip


@pytest.fixture(scope="session")
def two() -> list[tuple[Device, Programs]]:
    """Two drivers for CPUs, or contexts of one where there is one only; the second has the
    kernels for GPUs."""
    cpus = [info for info in list_devices() if info.kind == "cpu"]
    if not cpus:
        pytest.skip("no OpenCL device for CPUs")
    families = ("simd", "simt")
    opened = [
        open_device(str(info.index), family=family)
        for info, family in zip((cpus[0], cpus[-1]), families, strict=True)
    ]
    return [(device, Programs(device)) for device in opened]


def halves(n: int) -> Placement:
    """The first half of the layers on the first device, the rest on the second."""
    layers = tuple(int(i >= n // 2) for i in range(n))
    return Placement(0, layers, layers, 1)


def experts_elsewhere(n: int) -> Placement:
    return Placement(0, (0,) * n, (1,) * n, 0)


def tangled(n: int) -> Placement:
    """A layer of every kind: on one, on the other, and in two."""
    return Placement(1, tuple(i % 2 for i in range(n)), tuple(int(i % 3 == 0) for i in range(n)), 0)


@pytest.mark.parametrize("place", [halves, experts_elsewhere, tangled])
@pytest.mark.parametrize(
    "name", [*KINDS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_KINDS)]
)
def test_two_devices_are_as_one(
    two: list[tuple[Device, Programs]],
    conformance_model: Callable[[str], Path],
    name: str,
    place: Callable[[int], Placement],
) -> None:
    tokens, logits = reference(name)
    model = Stepper(conformance_model(name), *two[0], others=two[1:], place=place)
    assert nmse(model.run(sequence(tokens, 1, TABLE), [40] + [1] * 24), logits) <= FLOAT_NMSE
    assert nmse(model.run(sequence(tokens, 1, TABLE), [7, 20, 37]), logits) <= FLOAT_NMSE


def test_pages_are_copied_on_every_device(
    two: list[tuple[Device, Programs]], conformance_model: Callable[[str], Path]
) -> None:
    tokens, logits = reference("llama-dense")
    path = conformance_model("llama-dense")
    model = Stepper(path, *two[0], others=two[1:], place=halves)
    model.run(sequence(tokens, 0, [12, 13]), [40])
    heir = sequence(tokens, 1, [12, 14])
    heir.n_computed = 36
    result = model.step((heir, 28), copies=[PageCopy(13, 14, 4)])[0]
    assert nmse(result, logits[36:]) <= FLOAT_NMSE


def test_one_tape_between_two_transfers(
    two: list[tuple[Device, Programs]], conformance_model: Callable[[str], Path]
) -> None:
    path = conformance_model("llama-dense")
    for place, n_tapes in ((None, 1), (halves, 2)):
        model = Stepper(path, *two[0], others=two[1:] if place else (), place=place)
        recording, _ = model.runner.prepare([], [])
        assert len(list(recording.tapes)) == n_tapes


@pytest.mark.slow
@pytest.mark.parametrize("place", [halves, tangled])
def test_a_real_model(
    two: list[tuple[Device, Programs]], place: Callable[[int], Placement]
) -> None:
    """Quantized, so that drivers' roundings show; the best tokens are the same."""
    path = demo_model(lambda done, total: None)
    tokens = np.random.default_rng(1).integers(0, 40000, 64).tolist()
    one = Stepper(path, *two[0]).run(sequence(tokens, 1, TABLE), [40] + [1] * 24)
    model = Stepper(path, *two[0], others=two[1:], place=place)
    both = model.run(sequence(tokens, 1, TABLE), [40] + [1] * 24)
    assert nmse(both, one) <= FLOAT_NMSE
    assert np.array_equal(both.argmax(axis=1), one.argmax(axis=1))
