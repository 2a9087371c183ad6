"""State space models: the selective scans of Mamba and Mamba 2 (scan_*.cl)."""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.kernels.opencl.tape import Tape
from gguf_serve.kernels.opencl.tensor import Columns, Tensor
from gguf_serve.kernels.recurrent.columns import recurrence


class ScanWeights(Struct, frozen=True):
    """a: float32 [heads], or [channels, n_state] (then a channel is a head); d: [heads];
    dt_bias: [heads]."""

    a: Tensor
    d: Tensor
    dt_bias: Tensor | None
    n_channels: int
    n_heads: int
    n_groups: int
    n_state: int


def scan(
    tape: Tape,
    w: ScanWeights,
    x: Columns,
    dt: Columns,
    bc: Tensor,
    b_at: int,
    c_at: int,
    z: Columns,
    sequences: Tensor,
    state: Tensor,
    out: Tensor,
) -> None:
    """out[t] = silu(z) * (C state + D x) over each sequence's tokens; see scan_simd.cl.

    state: float32 [slots, n_channels, n_state], a multiple of 16; out: [n, n_channels].
    """
    if w.n_state % 16:
        raise ValueError(f"a state of {w.n_state} values, not a multiple of 16")
    defines = [
        f"N={w.n_state}", f"HEAD_SIZE={w.n_channels // w.n_heads}",
        f"HEADS={w.n_heads // w.n_groups}", *(["A_PER_STATE"] if len(w.a.shape) == 2 else []),
    ]  # fmt: skip
    args = {
        **x.args("x"), **dt.args("dt"), "dt_bias": w.dt_bias, "bc": bc, "bc_stride": bc.shape[-1],
        "b_at": b_at, "c_at": c_at, **z.args("z"), "a": w.a, "d": w.d, "n_channels": w.n_channels,
        "sequences": sequences, "state": state, "out": out,
    }  # fmt: skip
    recurrence(tape, "scan", defines, args, w.n_channels)
