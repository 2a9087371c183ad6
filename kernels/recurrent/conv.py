"""Causal convolution of channels over a sequence's tokens, with state (conv.cl)."""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.kernels.opencl.tape import SEQUENCES, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor

CHANNELS = 16  # per work-item


class ConvWeights(Struct, frozen=True):
    """weights: float32 [taps, channels], the last tap is the token's own; bias: [channels]."""

    weights: Tensor
    bias: Tensor | None = None

    @property
    def n_channels(self) -> int:
        return self.weights.shape[1]

    @property
    def state_shape(self) -> tuple[int, int]:
        """What a sequence keeps: the inputs that the next token still needs."""
        return self.weights.shape[0] - 1, self.n_channels


def conv(
    tape: Tape,
    x: Tensor,
    w: ConvWeights,
    sequences: Tensor,
    state: Tensor,
    out: Tensor,
    *,
    x_at: int = 0,
    out_at: int = 0,
    silu: bool = False,
    gate_at: int | None = None,
    out_gate_at: int | None = None,
) -> None:
    """out[t, out_at + c] = sum_j w[j, c] in[t - taps + 1 + j, c] + bias[c].

    in[t, c] = x[t, x_at + c], times x[t, gate_at + c] if that is given; the output is times
    x[t, out_gate_at + c]. sequences: int32 [n, 4], see conv.cl; state: float32 [slots,
    taps - 1, channels].
    """
    if w.n_channels % CHANNELS:
        raise ValueError(f"a convolution of {w.n_channels} channels, not a multiple of {CHANNELS}")
    flags = {
        "SILU_OUT": silu, "GATE_IN": gate_at is not None, "GATE_OUT": out_gate_at is not None,
    }  # fmt: skip
    defines = [f"CONV={w.weights.shape[0]}", *(name for name, on in flags.items() if on)]
    args = {
        "x": x, "x_stride": x.shape[-1], "x_at": x_at, "gate_at": gate_at or 0,
        "out_gate_at": out_gate_at or 0, "weights": w.weights, "bias": w.bias,
        "sequences": sequences, "n_channels": w.n_channels, "state": state, "out": out,
        "out_stride": out.shape[-1], "out_at": out_at,
    }  # fmt: skip
    tape.add("recurrent/conv.cl", "conv", defines, args, (w.n_channels // CHANNELS, Per(SEQUENCES)))
