"""Feed-forward networks: gated (one paired matrix, or two) or not."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, Part, TensorSource
from gguf_serve.kernels.matrix.activate import Xielu
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.norm import NormWeights


class FFNWeights(Struct, frozen=True):
    """``first`` is gate and up paired, or gate and up, or up alone where nothing is gated.
    ``cutoff``: of a sparse gate, see sparsify.cl; 0: it is not sparse."""

    first: tuple[Linear, ...]
    down: Linear
    divisors: Tensor | None = None  # of the activation's output
    xielu: Xielu | None = None
    norm: NormWeights | None = None  # of what down reads
    cutoff: float = 0.0

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return ffn(g, x, self)


def load_ffn(source: TensorSource, h: Hyperparameters, layer: int, suffix: str = "") -> FFNWeights:
    """The FFN of a layer, or with a suffix a part of one, as ``ffn_up_shexp``."""
    b = f"blk.{layer}."
    if h.image_experts:
        gate_, up_, down_ = (source.by_kind(b, f"ffn_{x}", x) for x in ("gate", "up", "down"))
        return FFNWeights((gate_, up_), down_)
    down = source.linear(f"{b}ffn_down{suffix}")
    norm = source.optional_norm(f"{b}ffn_sub_norm{suffix}", h.eps)
    n_ff = down.matrix.n_cols
    up = source.part(f"{b}ffn_up{suffix}")
    if source.has(f"{b}ffn_gate{suffix}.weight"):
        gate = source.part(f"{b}ffn_gate{suffix}")
        source.check_rows(f"{b}ffn_gate{suffix}.weight", n_ff)
        source.check_rows(f"{b}ffn_up{suffix}.weight", n_ff)
        if cutoff := h.sparsity_cutoffs[layer]:  # which looks at all of the gate
            apart = (*source.stacked([gate]), *source.stacked([up]))
            return FFNWeights(apart, down, norm=norm, cutoff=cutoff)
        return FFNWeights(_gate_and_up(source, gate, up), down, norm=norm)
    if up.n_rows == 2 * n_ff:
        return FFNWeights(_gate_and_up(source, up.rows(0, n_ff), up.rows(n_ff, 2 * n_ff)), down)
    source.check_rows(f"{b}ffn_up{suffix}.weight", n_ff)
    xielu = h.xielu[layer] if h.xielu else None
    return FFNWeights(source.stacked([up]), down, source.vector(f"{b}ffn.act.scales"), xielu)


def load_bare_ffn(source: TensorSource, h: Hyperparameters) -> FFNWeights:
    """An FFN that is its activation alone, between matrices that change nothing."""
    same = Linear(source.float_matrix(np.eye(h.n_embd, dtype=np.float32)))
    return FFNWeights((same,), same)


def _gate_and_up(source: TensorSource, gate: Part, up: Part) -> tuple[Linear, ...]:
    """One matrix, unless they differ in type, have scales, or adapters change what they yield."""
    plain = gate.scale == up.scale == 1 and not gate.updates and not up.updates
    if plain and gate.fits(up):
        return (source.paired(gate, up),)
    return (*source.stacked([gate]), *source.stacked([up]))


def ffn(
    g: Graph,
    x: Rows,
    w: FFNWeights,
    *,
    scale: float | None = None,
    limit: float = 0.0,
    add_to: Rows | None = None,
) -> Rows:
    """W (act(gate x) * up x), or W act(up x). ``scale`` of what it yields, if not the model's
    residual scale; ``limit`` of gate and up, if it is not 0."""
    activation = g.h.arch.glu(limit)
    if w.first[0].matrix.paired:
        hidden = g.glu(x, w.first[0], activation, limit)
    elif len(w.first) == 2:
        gate, up = (g.linear(x, part) for part in w.first)
        if w.cutoff:
            g.sparsify(gate, w.cutoff, sample="population_deviation" not in g.h.arch.quirks)
        hidden = g.gated(gate, up, activation, limit)
    else:
        hidden = g.activate(g.linear(x, w.first), activation, divisors=w.divisors, xielu=w.xielu)
    if w.norm is not None:
        hidden = g.norm(hidden, w.norm)
    scale = g.h.residual_scale if scale is None else scale
    return g.linear(hidden, w.down, scale=scale, add_to=add_to)
