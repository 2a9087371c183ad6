"""Activations outside of matmul (activate.cl): ungated FFNs, gates on what a mixer yields."""

from __future__ import annotations

from gguf_serve.kernels.matrix.matmul import glu_defines
from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.rows.norm import quantize

ACTIVATIONS = (
    "silu", "gelu", "gelu_erf", "gelu_quick", "relu", "relu2", "sigmoid", "softplus",
    "hardsigmoid", "hardswish", "tanh", "none",
)  # fmt: skip


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
) -> None:
    """out[t, c] = activation(x[t, x_at + c / repeat]) * y[t, y_at + c] / divisors[c].

    y and divisors may be missing; x and y may be out.values. ``times`` rows for each of
    counts[count].
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: {ACTIVATIONS}")
    defines = [f"ACT_{activation.upper()}"]
    _launch(tape, x, x_at, defines, repeat, y, y_at, divisors, out, Per(count, 1, times))


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
) -> None:
    defines = [*defines, f"REPEAT={repeat}"]
    args: dict[str, object] = {
        "x": x, "x_stride": x.shape[-1], "x_at": x_at, "divisors": divisors, "n_cols": out.n_cols,
        "out": out.values,
    }  # fmt: skip
    if y is not None:
        args |= {"y": y, "y_stride": y.shape[-1], "y_at": y_at}
    if out.values is None:
        args |= {"out_q": out.codes, "out_d": out.scales}
        defines += out.code_defines
    tape.add("matrix/activate.cl", "activate", defines, args, (-(-out.n_cols // 32), rows))
    if out.values is not None and out.quantized:
        quantize(tape, out, count=rows.index, times=rows.times)
