"""What the entries of a model's list compute, and how many launches they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from recorded import OUT, WIDTH, Function, X, context, matrices, normed_like, run

from gguf_serve.engine.layers.sublayer import (
    EMBEDDING,
    NormsAfter,
    Scaled,
    Skip,
    Sublayer,
    Together,
)
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import upload
from gguf_serve.kernels.rows.norm import NormWeights

__all__ = ["context", "matrices"]


@dataclass(frozen=True)
class Product:
    """A matrix in the place of a mixer."""

    matrix: Linear

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return g.linear(x, self.matrix)


@pytest.fixture
def ones(device: Device) -> NormWeights:
    return NormWeights(upload(device, np.ones(WIDTH, np.float32)), 1e-5)


def after(matrix: Linear, *entries: Any) -> Function:
    """The entries, of a product that nobody else reads."""

    def function(g: Graph, x: Rows) -> Rows:
        x = g.kept[EMBEDDING] = g.linear(x, matrix)
        for entry in entries:
            x = entry(g, x)
        return x

    return function


def check(found: Any, expected: Any, launches: list[str]) -> None:
    """``launches``: after the product, up to the sum with ``OUT``."""
    result, names = found
    np.testing.assert_allclose(result, OUT + expected, rtol=1e-3, atol=1e-3)
    assert names == ["matmul", *launches]


def test_a_sublayer_adds_to_the_stream(
    device: Device, programs: Programs, context: Any, matrices: Any, ones: NormWeights
) -> None:
    arrays, (a, b, *_) = matrices
    first = X @ arrays[0].T
    made = normed_like(first) @ arrays[1].T
    plain = Sublayer(0, 0, ones, Product(b), None)
    found = run(device, programs, context, after(a, plain))
    check(found, first + made, ["norm", "matmul", "combine"])
    ended = Sublayer(0, 0, ones, Product(b), ones)
    found = run(device, programs, context, after(a, ended))
    check(found, first + normed_like(made), ["norm", "matmul", "norm", "combine"])


def test_sublayers_together_read_the_same(
    device: Device, programs: Programs, context: Any, matrices: Any, ones: NormWeights
) -> None:
    arrays, (a, b, c, _) = matrices
    first = X @ arrays[0].T
    expected = first + normed_like(first) @ arrays[1].T + normed_like(first) @ arrays[2].T
    one, shared = Sublayer(0, 0, ones, Product(b), None), Sublayer(0, 0, None, Product(c), None)
    found = run(device, programs, context, after(a, Together((one, shared))))
    check(found, expected, ["norm", "matmul", "matmul", "combine"])
    other = Sublayer(0, 0, ones, Product(c), None)
    found = run(device, programs, context, after(a, Together((one, other))))
    check(found, expected, ["norm", "norm", "matmul", "matmul", "combine"])


def test_norms_after_are_of_the_stream(
    device: Device, programs: Programs, context: Any, matrices: Any, ones: NormWeights
) -> None:
    """A norm of what is added is carried out with the sum, here or in the next norm."""
    arrays, (a, b, *_) = matrices
    first = X @ arrays[0].T
    made = first + first @ arrays[1].T
    sublayer = Sublayer(0, 0, None, Product(b), None)
    found = run(device, programs, context, after(a, NormsAfter(sublayer, ones)))
    check(found, normed_like(made), ["matmul", "combine", "norm"])
    found = run(device, programs, context, after(a, NormsAfter(sublayer, ones, ones)))
    expected = normed_like(first + normed_like(made))
    check(found, expected, ["matmul", "combine", "norm", "combine"])


def test_a_layer_is_scaled(device: Device, programs: Programs, context: Any, matrices: Any) -> None:
    arrays, (a, *_) = matrices
    found = run(device, programs, context, after(a, Scaled(0, 0.25)))
    check(found, 0.25 * (X @ arrays[0].T), ["combine", "combine"])


def test_what_is_kept_is_there_for_later_entries(
    device: Device, programs: Programs, context: Any, matrices: Any, ones: NormWeights
) -> None:
    """Though the stream has changed since."""
    arrays, (a, b, *_) = matrices
    first = X @ arrays[0].T
    expected = first + normed_like(first) @ arrays[1].T + 0.5 * first
    entries = Sublayer(0, 0, ones, Product(b), None), Skip(0, 0.5)
    found = run(device, programs, context, after(a, *entries))
    check(found, expected, ["norm", "matmul", "combine", "combine", "combine"])
