"""Activations outside of matmul (activate.cl): ungated FFNs, gates on what a mixer yields."""

from __future__ import annotations

from typing import NamedTuple

from gguf_serve.kernels.matrix.matmul import glu_defines
from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.rows.norm import quantize

ACTIVATIONS = (
    "silu", "gelu", "gelu_erf", "gelu_quick", "relu", "relu2", "elu", "sigmoid", "softplus",
    "hardsigmoid", "hardswish", "tanh", "sqrt", "inverse", "none", "xielu",
)  # fmt: skip


class Xielu(NamedTuple):
    """xIELU (https://arxiv.org/abs/2411.13010): alpha_p x^2 + beta x for x > 0, else
    alpha_n (exp(min(x, eps)) - 1 - x) + beta x."""

    alpha_n: float
    alpha_p: float
    beta: float
    eps: float


def activate(
    tape: Tape,
    x: Tensor,
    out: Activations,
    *,
    activation: str,
    x_at: int = 0,
    repeat: int = 1,
    y: Tensor | None = None,
    y_at: int = 0,
    divisors: Tensor | None = None,
    count: int = TOKENS,
    times: int = 1,
    xielu: Xielu | None = None,
) -> None:
    """out[t, c] = activation(x[t, x_at + c / repeat]) * y[t, y_at + c] / divisors[c].

    y and divisors may be missing; x and y may be out.values. ``times`` rows for each of
    counts[count]. ``xielu``: the numbers of that activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: {ACTIVATIONS}")
    if (activation == "xielu") != (xielu is not None):
        raise ValueError(f"activation {activation!r} with the numbers {xielu} of xIELU")
    defines = [f"ACT_{activation.upper()}"]
    _launch(tape, x, x_at, defines, repeat, y, y_at, divisors, out, Per(count, 1, times), xielu)


def activate_glu(
    tape: Tape,
    gate: Tensor,
    up: Tensor,
    out: Activations,
    *,
    activation: str,
    gate_at: int = 0,
    up_at: int = 0,
    limit: float = 0.0,
    times: int = 1,
) -> None:
    """out = activation(gate) * up, for a gate and an up that are not in one paired matrix."""
    defines = glu_defines(activation, limit)
    _launch(tape, gate, gate_at, defines, 1, up, up_at, None, out, Per(TOKENS, 1, times))


def _launch(
    tape: Tape,
    x: Tensor,
    x_at: int,
    defines: list[str],
    repeat: int,
    y: Tensor | None,
    y_at: int,
    divisors: Tensor | None,
    out: Activations,
    rows: Per,
    xielu: Xielu | None = None,
) -> None:
    defines = [*defines, f"REPEAT={repeat}"]
    args: dict[str, object] = {
        "x": x, "x_stride": x.shape[-1], "x_at": x_at, "divisors": divisors, "n_cols": out.n_cols,
        "out": out.values,
    }  # fmt: skip
    if xielu is not None:
        args |= xielu._asdict()
    if y is not None:
        args |= {"y": y, "y_stride": y.shape[-1], "y_at": y_at}
    if out.values is None:
        args |= {"out_q": out.codes, "out_d": out.scales}
        defines += out.code_defines
    tape.add("matrix/activate.cl", "activate", defines, args, (-(-out.n_cols // 32), rows))
    if out.values is not None and out.quantized:
        quantize(tape, out, count=rows.index, times=rows.times)
