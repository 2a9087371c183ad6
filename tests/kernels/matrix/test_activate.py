"""Activations outside of matmul, against NumPy in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from launching import run, unquantized

from gguf_serve.kernels.matrix.activate import Xielu, activate, activate_glu
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.quantization.activations import Activations, activations

Doubles = npt.NDArray[np.float64]
N, WIDTH = 5, 96
XIELU = Xielu(1.3, 0.8, 0.5, -0.25)


def gelu(x: Doubles) -> Doubles:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: Doubles) -> Doubles:
    return 1 / (1 + np.exp(-x))


FORMULAS: dict[str, Callable[[Doubles], Doubles]] = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "sigmoid": sigmoid,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "gelu_erf": np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
    "gelu_quick": lambda x: x * sigmoid(1.702 * x),
    "hardsigmoid": lambda x: np.clip((x + 3) / 6, 0, 1),
    "none": lambda x: x,
    "inverse": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "hardswish": lambda x: x * np.clip((x + 3) / 6, 0, 1),
    "xielu": lambda x: (
        XIELU.beta * x
        + np.where(
            x > 0, XIELU.alpha_p * x**2, XIELU.alpha_n * (np.expm1(np.minimum(x, XIELU.eps)) - x)
        )
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("quantized", [False, True])
def test_formulas(device: Device, programs: Programs, name: str, quantized: bool) -> None:
    x = 3 * np.random.default_rng(1).standard_normal((N, WIDTH), dtype=np.float32)
    if name in ("inverse", "sqrt"):
        x = np.abs(x) + np.float32(0.1)
    values = upload(device, x)
    out = activations(device, N, WIDTH, quantized=quantized)
    run(
        device,
        programs,
        N,
        lambda tape: activate(
            tape, values, out, activation=name, xielu=XIELU if name == "xielu" else None
        ),
    )
    if out.values is None:
        result = unquantized(device, programs, out, N)
    else:
        result = read(out.values, None, device.queue)
    expected = FORMULAS[name](x.astype(np.float64))
    np.testing.assert_allclose(result, expected, atol=2e-3 if quantized else 2e-6, rtol=1e-5)


@pytest.mark.parametrize("repeat", [1, 24])
def test_a_gate_per_value_or_per_head(device: Device, programs: Programs, repeat: int) -> None:
    """The gate is read from the middle of a row, the values are changed in place."""
    rng = np.random.default_rng(2)
    gate = rng.standard_normal((N, 200), dtype=np.float32)
    y = rng.standard_normal((N, WIDTH), dtype=np.float32)
    gates, values = upload(device, gate), upload(device, y)
    run(
        device, programs, N,
        lambda tape: activate(
            tape, gates, Activations(WIDTH, values), activation="sigmoid", x_at=17,
            repeat=repeat, y=values,
        ),
    )  # fmt: skip
    factor = sigmoid(gate[:, 17 : 17 + WIDTH // repeat].astype(np.float64))
    expected = y * np.repeat(factor, repeat, axis=1)
    np.testing.assert_allclose(read(values, None, device.queue), expected, rtol=1e-5, atol=1e-7)


def test_divisors_and_a_width_that_is_no_multiple_of_32(device: Device, programs: Programs) -> None:
    rng = np.random.default_rng(3)
    x, divisors = rng.standard_normal((N, 40), dtype=np.float32), rng.random(40, np.float32) + 1
    values, factors = upload(device, x), upload(device, divisors)
    out = Activations(40, empty(device, (N, 40)))
    run(
        device, programs, N,
        lambda tape: activate(tape, values, out, activation="gelu", divisors=factors),
    )  # fmt: skip
    result = read(values if out.values is None else out.values, None, device.queue)
    np.testing.assert_allclose(result, gelu(x.astype(np.float64)) / divisors, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "limit"),
    [("silu", 0.0), ("silu", 0.7), ("silu_late", 0.7), ("gelu", 0.0), ("swiglu_oai", 0.0)],
)
def test_gated_activations(device: Device, programs: Programs, name: str, limit: float) -> None:
    rng = np.random.default_rng(4)
    gate, up = (9 * rng.standard_normal((2, N, WIDTH))).astype(np.float32)
    tensors = upload(device, gate), upload(device, up)
    result = empty(device, (N, WIDTH))
    out = Activations(WIDTH, result)
    run(
        device, programs, N,
        lambda tape: activate_glu(tape, *tensors, out, activation=name, limit=limit),
    )  # fmt: skip
    g, u = gate.astype(np.float64), up.astype(np.float64)
    if limit:
        u = np.clip(u, -limit, limit)
    expected = {
        "silu": lambda: FORMULAS["silu"](np.minimum(g, limit or np.inf)) * u,
        "silu_late": lambda: np.minimum(FORMULAS["silu"](g), limit) * u,
        "gelu": lambda: gelu(g) * u,
        "swiglu_oai": lambda: (
            np.minimum(g, 7) * sigmoid(1.702 * np.minimum(g, 7)) * (np.clip(u, -7, 7) + 1)
        ),
    }[name]()
    np.testing.assert_allclose(read(result, None, device.queue), expected, rtol=2e-5, atol=1e-5)


def test_an_unknown_activation_is_refused(device: Device, programs: Programs) -> None:
    x = empty(device, (1, 32))
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        run(
            device, programs, 1,
            lambda tape: activate(tape, x, Activations(32, x), activation="swish"),
        )  # fmt: skip
