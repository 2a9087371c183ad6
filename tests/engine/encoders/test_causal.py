"""Causal convolutions and transposed ones against their definitions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import random_model
from vision_data import nmse

from gguf_serve.engine.encoders.causal import convolved, transposed
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.gguf.file import GGUFFile, open_gguf
from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.program import Programs

Floats = npt.NDArray[np.float32]
N, WIDTH, OUT = 30, 32, 24
TENSORS: list[tuple[str, list[int], str]] = [
    ("a.five.weight", [5, WIDTH, OUT], "F16"),
    ("a.five.bias", [OUT], "F32"),
    ("a.one.weight", [1, WIDTH, OUT], "F32"),
    ("a.each.weight", [7, 1, WIDTH], "F16"),
    ("a.each.bias", [WIDTH], "F32"),
    *((f"a.up{k}.weight", [k, OUT, WIDTH], "F16") for k in (3, 6, 7)),
    *((f"a.up{k}.bias", [OUT], "F32") for k in (3, 6)),
    ("a.upeach.weight", [6, 1, WIDTH], "F16"),
]
X = np.random.default_rng(3).standard_normal((N, WIDTH), dtype=np.float32)


@pytest.fixture(scope="session")
def first() -> tuple[Device, Programs]:
    device = open_device(None)
    return device, Programs(device)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GGUFFile]:
    spec = {"arch": "clip", "seed": 7, "kv": {}, "tensors": TENSORS}
    path: Path = random_model.build(spec, tmp_path_factory.mktemp("causal") / "kernels.gguf")
    with open_gguf(path) as file:
        yield file


def kernel_of(file: GGUFFile, name: str) -> tuple[Floats, Floats | float]:
    """A kernel, slowest dimension first, and its bias."""
    shape = file.tensors[f"a.{name}.weight"].shape
    bias = file.floats(f"a.{name}.bias") if f"a.{name}.bias" in file.tensors else 0.0
    return file.floats(f"a.{name}.weight").reshape(shape[::-1]), bias


def seen_by(
    file: GGUFFile, name: str, stride: int = 1, dilation: int = 1, repeat: bool = False
) -> Any:
    """What a convolution is: windows over x, with what is before it."""
    kernel, bias = kernel_of(file, name)
    span = (kernel.shape[2] - 1) * dilation + 1
    before = np.repeat(X[:1] if repeat else np.zeros_like(X[:1]), span - stride, axis=0)
    padded = np.concatenate([before, X]).astype(np.float64)
    windows = np.array([padded[at : at + span : dilation] for at in range(0, N, stride)])
    if kernel.shape[1] == 1:
        return np.einsum("nkc,cok->nc", windows, kernel) + bias
    return np.einsum("nkc,ock->no", windows, kernel) + bias


def spread_by(file: GGUFFile, name: str, stride: int) -> Any:
    """What a transposed one is: kernels added up, each times a row."""
    kernel, bias = kernel_of(file, name)
    n_in, n_out, n_taps = kernel.shape
    by_column = n_out == 1
    found = np.zeros((N * stride + n_taps, n_in if by_column else n_out))
    for i, row in enumerate(X):
        each = np.einsum("i,iok->ki" if by_column else "i,iok->ko", row, kernel)
        found[i * stride : i * stride + n_taps] += each
    return found[: N * stride] + bias


def check(
    device: Device, programs: Programs, verb: Any, name: str, expected: Any, **how: Any
) -> None:
    graph = Graph(EncoderWeights(expected.args[0], device, programs), device, programs)
    made = verb(graph, graph.input(N, WIDTH), f"a.{name}", **how)
    graph.finish(graph.activate(made, "none"))
    assert nmse(graph.run([X]), expected(name, **how)) < 1e-7


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("five", {"dilation": 3}), ("five", {"stride": 3}), ("five", {"stride": 2, "repeat": True}),
        ("one", {}), ("each", {}), ("each", {"dilation": 2, "repeat": True}),
    ],
)  # fmt: skip
def test_a_row_sees_itself_and_those_before_it(
    first: tuple[Device, Programs], kernels: GGUFFile, name: str, how: dict[str, Any]
) -> None:
    check(*first, convolved, name, partial(seen_by, kernels), **how)


@pytest.mark.parametrize("name", ["up3", "up7", "upeach"])
def test_kernels_are_added_where_their_rows_begin(
    first: tuple[Device, Programs], kernels: GGUFFile, name: str
) -> None:
    check(*first, transposed, name, partial(spread_by, kernels), stride=3)


def test_on_every_device_in_both_families(
    device: Device, programs: Programs, kernels: GGUFFile
) -> None:
    check(device, programs, convolved, "five", partial(seen_by, kernels))
    check(device, programs, transposed, "up6", partial(spread_by, kernels), stride=3)
