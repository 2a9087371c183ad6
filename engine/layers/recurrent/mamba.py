"""Mamba (https://arxiv.org/abs/2312.00752) and Mamba 2 (https://arxiv.org/abs/2405.21060).

Mamba makes B, C and the step size from the convolved input; Mamba 2 takes them from its first
matrix, has heads, and norms its output. PLaMo 2 has Mamba's way with Mamba 2's heads.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.layers.recurrent.short_conv import load_convs
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, Part, TensorSource
from gguf_serve.kernels.recurrent.conv import ConvWeights
from gguf_serve.kernels.recurrent.scan import ScanWeights
from gguf_serve.kernels.rows.norm import NormWeights


class StepSize(Struct, frozen=True):
    """Where Mamba 1 gets the step size, B and C from: matrices and norms of their parts."""

    inputs: Linear  # from the convolved input
    dt: Linear
    norms: tuple[NormWeights, NormWeights, NormWeights]  # of the step size, B, C
    dt_at: int
    b_at: int
    c_at: int


class MambaWeights(Struct, frozen=True):
    """``inputs`` yields x and z (Mamba 1), or z, x, B, C and the step size (Mamba 2)."""

    inputs: tuple[Linear, ...]
    conv: ConvWeights
    scan: ScanWeights
    step_size: StepSize | None
    norm: NormWeights | None
    output: Linear

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return mamba(g, x, self)


def load_mamba(source: TensorSource, h: Hyperparameters, layer: int) -> MambaWeights:
    """Layer ``layer``'s state space; ModelError for tensors that are missing."""
    b = f"blk.{layer}."
    output = source.linear(f"{b}ssm_out")
    n_channels = output.matrix.n_cols
    old = source.has(f"{b}ssm_x.weight")
    a, d = source.table(f"{b}ssm_a"), source.vector(f"{b}ssm_d")
    if a is None or d is None:
        raise ModelError(f"{b}ssm_a or {b}ssm_d is missing")
    per_state = a.shape[0] == n_channels
    if not per_state:
        a = source.vector(f"{b}ssm_a") or a
    n_heads = d.shape[0]
    bias = source.vector(f"{b}ssm_dt.bias")
    conv_weights = load_convs(source, [f"{b}ssm_conv1d"])
    n_state = h.ssm_state
    groups = 1 if old else (conv_weights.n_channels - n_channels) // (2 * n_state)
    weight = source.vector(f"{b}ssm_norm.weight")
    return MambaWeights(
        inputs=source.stacked(_inputs(source, b, n_channels, n_heads, per_state or not old)),
        conv=conv_weights,
        scan=ScanWeights(a, d, bias, n_channels, n_heads, groups, n_state),
        step_size=_step_size(source, h, b, n_state, first=per_state) if old else None,
        norm=None if weight is None else NormWeights(weight, h.eps),
        output=output,
    )


def _inputs(source: TensorSource, b: str, n_channels: int, n_heads: int, plain: bool) -> list[Part]:
    """The first matrix; where z and x of each head alternate, as x and then z of all."""
    whole = source.part(f"{b}ssm_in")
    if plain:
        return [whole]
    size = n_channels // n_heads
    halves = [whole.rows(i * size, (i + 1) * size) for i in range(2 * n_heads)]
    return [*halves[1::2], *halves[::2]]


def _step_size(
    source: TensorSource, h: Hyperparameters, b: str, n_state: int, *, first: bool
) -> StepSize:
    """``first``: the step size comes before B and C."""

    def weights(name: str) -> NormWeights:
        vector = source.vector(f"{b}ssm_{name}_norm.weight")
        return NormWeights(vector, h.eps, weightless=h.ssm_norms)

    # The bias of the step size is the scan's.
    dt = Linear(source.matrix(f"{b}ssm_dt.weight"))
    rank = dt.matrix.n_cols
    dt_at, b_at = (0, rank) if first else (2 * n_state, 0)
    return StepSize(
        source.linear(f"{b}ssm_x"), dt, (weights("dt"), weights("b"), weights("c")), dt_at, b_at,
        b_at + n_state,
    )  # fmt: skip


def mamba(g: Graph, x: Rows, w: MambaWeights) -> Rows:
    """W norm(y), y the scan of the convolved input, gated by z."""
    n, n_conv, inputs = w.scan.n_channels, w.conv.n_channels, g.linear(x, w.inputs)
    n_bc = w.scan.n_groups * w.scan.n_state
    if w.step_size is None:
        z, u, dt = inputs.split(n, n_conv, w.scan.n_heads)
        u, b, c = g.conv(u, w.conv, silu=True).split(n, n_bc, n_bc)
    else:
        u, z = inputs.split(n_conv, n)
        u = g.conv(u, w.conv, silu=True)
        dt, b, c = step_size(g, u, w.step_size, n_bc)
    y = g.scan(w.scan, u, dt, b, c, z)
    if w.norm is not None:
        y = g.norm(y, w.norm, groups=w.scan.n_groups)
    return g.output(y, w.output)


def step_size(g: Graph, u: Rows, w: StepSize, n_state: int) -> tuple[Rows, Rows, Rows]:
    """Step size, B and C from the convolved input."""
    made = g.linear(u, w.inputs)
    dt, b, c = (
        replace(made, width=n, at=at)
        for n, at in ((w.dt.matrix.n_cols, w.dt_at), (n_state, w.b_at), (n_state, w.c_at))
    )
    for rows, weights in zip((b, c), w.norms[1:], strict=True):
        if not weights.is_copy:
            g.normalize(rows, weights)
    return g.linear(g.norm(dt, w.norms[0]), w.dt), b, c
