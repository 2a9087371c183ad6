"""A set of experts: their matrices, and what comes out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gguf_serve.engine.recording.expert_verbs import Choice
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, Part, TensorSource


@dataclass(frozen=True, slots=True)
class ExpertsWeights:
    """All experts' matrices in one each; ``first`` is gate and up paired, or gate and up where
    adapters change what they yield, or up alone."""

    first: tuple[Linear, ...]
    down: Linear


def load_experts(source: TensorSource, prefix: str, suffix: str) -> ExpertsWeights:
    """Gate and up as two tensors, as one, or up alone; and down."""

    def parts(name: str, share: int = 0, of: int = 1) -> Sequence[Part]:
        return source.experts(f"{prefix}{name}{suffix}", share, of)

    if source.has(f"{prefix}gate_up{suffix}.weight"):
        both = [parts("gate_up", 0, 2), parts("gate_up", 1, 2)]
    elif source.has(f"{prefix}gate{suffix}.weight"):
        both = [parts("gate"), parts("up")]
    else:
        both = [parts("up")]
    if any(part.updates for some in both for part in some):
        first = tuple(source.expert_linear(some) for some in both)
    else:
        first = (source.expert_linear(*both),)
    return ExpertsWeights(first, source.expert_linear(parts("down")))


def experts(g: Graph, x: Rows, w: ExpertsWeights, choice: Choice, limit: float) -> Rows:
    """What the chosen experts of each token yield, one row after another."""
    activation = g.h.arch.glu(limit)
    if w.first[0].matrix.paired:
        hidden = g.expert_glu(x, w.first[0], choice, activation, limit)
    else:
        gate, *up = (g.expert_linear(x, part, choice, of_tokens=True) for part in w.first)
        if up:
            hidden = g.gated(gate, up[0], activation, limit)
        else:
            hidden = g.activate(gate, g.h.arch.activation)
    return g.expert_linear(hidden, w.down, choice)
