"""What a head of speculation begins with (DeepSeek-V3, https://arxiv.org/abs/2412.19437, 2.2): a
token's embedding and the state that its target has of the token before, made one."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.rows.norm import NormWeights

PROJECTION = "blk.0.nextn.eh_proj"


@dataclass(frozen=True, slots=True)
class Fusion:
    """W [norm(embedding), norm(state)], the entry before a head's layers."""

    part: int
    embedding_norm: NormWeights
    state_norm: NormWeights
    projection: Linear

    def __call__(self, g: Graph, x: Rows) -> Rows:
        states = g.context.inputs.states
        assert states is not None, "a head of speculation without states"
        with g.on(self.part):
            both = g.rows(2 * x.width)
            embedding, state = both.split(x.width, x.width)
            g.copy(x, embedding)
            g.copy(g.given(states), state)
            g.normalize(embedding, self.embedding_norm)
            g.normalize(state, self.state_norm)
            return g.linear(both, self.projection)


def load_fusion(source: TensorSource, h: Hyperparameters, part: int) -> Fusion | None:
    """None for models that are no such head; ModelError for what is missing."""
    if not source.has(f"{PROJECTION}.weight"):
        return None

    def norm(name: str) -> NormWeights:
        weight = source.vector(f"blk.0.nextn.{name}.weight")
        if weight is None:
            raise ModelError(f"tensor nextn.{name}.weight is missing")
        return NormWeights(weight, h.eps, layer=h.arch.layer_norm)

    return Fusion(part, norm("enorm"), norm("hnorm"), source.linear(PROJECTION, 2 * h.n_embd))
