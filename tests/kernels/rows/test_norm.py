"""Normalization against NumPy in double precision, and the quantization of rows."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from launching import (
    CODE_MAX,
    SPAN_CODE_MAX,
    SPAN_SUM_MAX,
    exact_activations,
    exact_spans,
    quantized,
    run,
    unquantized,
)

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import OUTPUTS
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.quantization.activations import Activations, activations
from gguf_serve.kernels.rows.norm import NormWeights, PostNorm, norm, quantize

Floats = npt.NDArray[np.float32]
ROUNDING = 16 * 2.0**-24  # of a float sum, a root, a division and the product, of the row's size
EPS = 1e-5


@dataclass(frozen=True)
class Rows:
    """Seven rows far from zero mean, and the weights of a norm."""

    x: Floats
    y: Floats
    weight: Floats
    bias: Floats
    post: Floats


@pytest.fixture(params=[33, 64, 576])
def rows(request: pytest.FixtureRequest) -> Rows:
    rng, n = np.random.default_rng(1), request.param
    x, y = rng.standard_normal((2, 7, n), dtype=np.float32)
    weight, bias, post = 1 + 0.1 * rng.standard_normal((3, n), dtype=np.float32)
    return Rows(x + 0.5, y * 3, weight, bias, post)


def rms(x: npt.NDArray[np.float64], weight: Floats) -> npt.NDArray[np.float64]:
    return x / np.sqrt((x**2).mean(1, keepdims=True) + EPS) * weight


def layer(x: npt.NDArray[np.float64], weight: Floats, bias: Floats | float) -> npt.NDArray:
    return rms(x - x.mean(1, keepdims=True), weight) + bias


def assert_close(result: Floats, expected: npt.NDArray[np.float64]) -> None:
    __tracebackhide__ = True
    error = np.abs(result - expected).max(1) / np.abs(expected).max(1)
    assert error.max() <= ROUNDING, f"{error.max() / 2**-24:.1f} * 2**-24"


@pytest.mark.parametrize("formula", ["rms", "layer", "layer without bias", "none"])
def test_formulas(device: Device, programs: Programs, rows: Rows, formula: str) -> None:
    x, on = rows.x.astype(np.float64), functools.partial(upload, device)
    on_device = on(rows.x)
    weights, expected = {
        "rms": (NormWeights(on(rows.weight), EPS), rms(x, rows.weight)),
        "layer": (
            NormWeights(on(rows.weight), EPS, on(rows.bias), layer=True),
            layer(x, rows.weight, rows.bias),
        ),
        "layer without bias": (
            NormWeights(on(rows.weight), EPS, layer=True), layer(x, rows.weight, 0),
        ),
        "none": (NormWeights(None, 0.0), x),
    }[formula]  # fmt: skip
    out = Activations(x.shape[1], values=upload(device, np.full((8, x.shape[1]), 9, np.float32)))
    run(device, programs, 7, lambda tape: norm(tape, on_device, weights, out))
    result = read(out.values, None, device.queue)
    assert_close(result[:7], expected)
    assert np.all(result[7] == 9)


def test_norm_of_the_sublayer_is_added_first(
    device: Device, programs: Programs, rows: Rows
) -> None:
    x = upload(device, rows.x)
    out = Activations(rows.x.shape[1], values=empty(device, rows.x.shape))
    weights = NormWeights(upload(device, rows.weight), EPS)
    post = PostNorm(upload(device, rows.y), upload(device, rows.post), EPS)
    run(device, programs, 7, lambda tape: norm(tape, x, weights, out, post=post))
    stream = rows.x + rms(rows.y.astype(np.float64), rows.post)
    assert_close(read(x, None, device.queue), stream)
    assert_close(read(out.values, None, device.queue), rms(stream, rows.weight))


def test_rows_that_are_picked(device: Device, programs: Programs, rows: Rows) -> None:
    """The last norm: the rows of another count, in any order; the stream gets its post norm."""
    n_cols = rows.x.shape[1]
    x, out = upload(device, rows.x), Activations(n_cols, values=empty(device, (3, n_cols)))
    weights = NormWeights(upload(device, rows.weight), EPS)
    post = PostNorm(upload(device, rows.y), upload(device, rows.post), EPS)
    picked = upload(device, np.array([6, 0, 3], np.int32))
    run(
        device, programs, (7, 3, 0, 0),
        lambda tape: norm(tape, x, weights, out, post=post, rows=picked, count=OUTPUTS),
    )  # fmt: skip
    stream = rows.x + rms(rows.y.astype(np.float64), rows.post)
    expected = rms(stream, rows.weight)[[6, 0, 3]]
    assert_close(read(out.values, None, device.queue), expected)


def test_quantized_and_both(device: Device, programs: Programs, rows: Rows) -> None:
    n_cols = rows.x.shape[1]
    if n_cols % 32:
        with pytest.raises(ValueError, match=f"{n_cols} columns"):
            activations(device, 7, n_cols, quantized=True)
        return
    weights, x = NormWeights(upload(device, rows.weight), EPS), upload(device, rows.x)
    only = activations(device, 7, n_cols, quantized=True)
    made = activations(device, 7, n_cols, quantized=True)
    both = Activations(n_cols, empty(device, rows.x.shape), made.codes, made.scales)
    run(
        device, programs, 7,
        lambda tape: norm(tape, x, weights, only), lambda tape: norm(tape, x, weights, both),
    )  # fmt: skip
    floats = read(both.values, None, device.queue)
    assert_close(floats, rms(rows.x.astype(np.float64), rows.weight))
    for form in (only, both):
        assert_quantized(unquantized(device, programs, form, 7), floats)


def assert_quantized(result: Floats, values: Floats) -> None:
    """Half a step of each block of 32 at most, whose largest magnitude is CODE_MAX steps.

    A value in steps is a float, and so has a rounding of its own.
    """
    __tracebackhide__ = True
    blocks = values.reshape(len(values), -1, 32)
    steps = np.abs(blocks).max(2, keepdims=True) / CODE_MAX
    error = np.abs(result.reshape(blocks.shape) - blocks)
    assert np.all(error <= steps * (0.5 + CODE_MAX * 4 * 2.0**-24))


def test_quantization(device: Device, programs: Programs) -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal((5, 96), dtype=np.float32) * 10 ** rng.uniform(-6, 6, (5, 1))
    values = values.astype(np.float32)
    assert_quantized(unquantized(device, programs, quantized(device, programs, values), 5), values)


def test_quantization_keeps_what_codes_can_hold(device: Device, programs: Programs) -> None:
    values = exact_activations(9, 160, np.random.default_rng(3))
    values[4, 32:64] = 0
    result = unquantized(device, programs, quantized(device, programs, values), 9)
    assert np.array_equal(result, values)


def test_spans_share_a_scale(device: Device, programs: Programs) -> None:
    """The largest magnitude, or the largest sum of 64 of them, sets it."""
    rng = np.random.default_rng(4)
    values = rng.standard_normal((5, 768), dtype=np.float32)
    values[0, 100] = 300  # far from the others
    values[1, 256:512] = 0
    values[2] = 1  # a sum that is too large for codes of 16 bits
    spans = np.abs(values.reshape(5, 3, 4, 64))
    limits = spans.max((2, 3)) / SPAN_CODE_MAX, spans.sum(3).max(2) / SPAN_SUM_MAX
    steps = np.maximum(*limits)[..., None, None]
    inputs = quantized(device, programs, values, spans=True)
    result = unquantized(device, programs, inputs, 5)
    error = np.abs(result - values).reshape(spans.shape)
    assert np.all(error <= steps * (0.5 + SPAN_CODE_MAX * 4 * 2.0**-24))
    assert np.array_equal(result[1, 256:512], values[1, 256:512])


def test_spans_keep_what_codes_can_hold(device: Device, programs: Programs) -> None:
    values = exact_spans(5, 512, np.random.default_rng(5))
    inputs = quantized(device, programs, values, spans=True)
    assert np.array_equal(unquantized(device, programs, inputs, 5), values)


def test_groups_have_their_own_weights(device: Device, programs: Programs) -> None:
    rng = np.random.default_rng(7)
    x, (weight, bias) = rng.standard_normal((3, 128), dtype=np.float32), rng.random((2, 128))
    tensors = [upload(device, each.astype(np.float32)) for each in (x, weight, bias)]
    weights = NormWeights(tensors[1], EPS, tensors[2], layer=True)
    out = activations(device, 3, 128, quantized=False)
    run(device, programs, 3, lambda tape: norm(tape, tensors[0], weights, out, groups=4))
    assert out.values is not None
    groups = x.astype(np.float64).reshape(3, 4, 32)
    centred = groups - groups.mean(axis=2, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + EPS)
    np.testing.assert_allclose(
        read(out.values, None, device.queue), normed.reshape(3, 128) * weight + bias, rtol=1e-4,
        atol=1e-5,
    )  # fmt: skip


def test_spans_are_whole(device: Device, programs: Programs) -> None:
    x = empty(device, (1, 256))
    made = activations(device, 1, 256, quantized=True, spans=True)
    with pytest.raises(ValueError, match="groups of 64 columns in spans of 256"):
        run(device, programs, 1, lambda tape: norm(tape, x, NormWeights(None, EPS), made, groups=4))


def test_quantization_without_values_is_refused(device: Device, programs: Programs) -> None:
    codes = activations(device, 1, 32, quantized=True)
    with pytest.raises(ValueError, match="both values and codes"):
        run(device, programs, 1, lambda tape: quantize(tape, codes))
    floats = activations(device, 1, 32, quantized=False)
    with pytest.raises(ValueError, match="both values and codes"):
        run(device, programs, 1, lambda tape: quantize(tape, floats))


@pytest.mark.parametrize("spans", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_survives_quantization(
    device: Device, programs: Programs, spans: bool, value: float
) -> None:
    """As a code it would be any number. The other rows are what they were."""
    values = np.random.default_rng(6).standard_normal((3, 512), dtype=np.float32)
    clean = unquantized(device, programs, quantized(device, programs, values, spans=spans), 3)
    values[1, 300] = value
    result = unquantized(device, programs, quantized(device, programs, values, spans=spans), 3)
    assert not np.isfinite(result[1, 300])
    assert np.array_equal(result[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("spans", [False, True])
def test_what_is_next_to_nothing_is_quantized_to_zeros(
    device: Device, programs: Programs, spans: bool
) -> None:
    """The inverse of its scale would be infinite, and 0 times that no number."""
    values = np.zeros((1, 256), np.float32)
    values[0, ::2] = 1e-42
    result = unquantized(device, programs, quantized(device, programs, values, spans=spans), 1)
    assert np.abs(result).max() <= 1e-42
