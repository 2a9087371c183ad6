"""What heads of speculation and drafts read beside a token: a state of their target.

A head in its model's file (DeepSeek-V3, https://arxiv.org/abs/2412.19437, section 2.2) makes one
stream of both; EAGLE-3's attention reads both side by side, and its states are made of the inputs
of several layers of the target. So are DFlash's, of which its layers have keys.
"""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.architecture.drafts import target_layers
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.layers.attention.attention import ENCODED
from gguf_serve.engine.layers.sublayer import Entry, SublayerWeights
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.rows.norm import COPY, NormWeights

PROJECTION = "blk.0.nextn.eh_proj"
FEATURES = "inputs of layers"  # the name of what is kept for a draft's states


class Beside(Struct, frozen=True):
    """[norm(embedding), norm(state)] of each token."""

    embedding_norm: NormWeights
    state_norm: NormWeights

    def __call__(self, g: Graph, x: Rows, given: Rows) -> Rows:
        both = g.rows(2 * x.width)
        embedding, state = both.split(x.width, x.width)
        g.copy(x, embedding)
        g.copy(given, state)
        g.normalize(embedding, self.embedding_norm)
        g.normalize(state, self.state_norm)
        return both


class Fusion(Struct, frozen=True):
    """W [norm(embedding), norm(state)], the entry before a head's layers; of each of the target's
    residual streams, where it has several."""

    part: int
    beside: Beside
    projection: Linear

    def __call__(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.part):
            states = given_states(g)
            out = g.rows(states.width)
            sizes = [x.width] * (states.width // x.width)
            for state, stream in zip(states.split(*sizes), out.split(*sizes), strict=True):
                g.linear(self.beside(g, x, state), self.projection, into=stream)
            return out


class DraftAttention(Struct, frozen=True):
    """state + f([norm(embedding), norm(state)]), or norm(state) + that if the residual is
    ``normed``."""

    part: int
    beside: Beside
    weights: SublayerWeights
    normed: bool

    def __call__(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.part):
            both = self.beside(g, x, given_states(g))
            state = both.split(x.width, x.width)[1] if self.normed else given_states(g)
            return g.add(g.copied_columns(state), self.weights(g, both, 0))


class Projection(Struct, frozen=True):
    """W [embedding, state], the entry before the layers of a draft narrower than its target."""

    part: int
    projection: Linear

    def __call__(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.part):
            both = g.rows(2 * x.width)
            embedding, state = both.split(x.width, x.width)
            g.copy(x, embedding)
            g.copy(given_states(g), state)
            return g.linear(both, self.projection)


class States(Struct, frozen=True):
    """norm(state), the entry before the layers of a draft that have keys of it."""

    part: int
    norm: NormWeights

    def __call__(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.part):
            g.kept[ENCODED] = g.norm(given_states(g), self.norm)
        return x


class StateFusion(Struct, frozen=True):
    """A draft's states, of its target: W norm(the inputs of ``layers`` side by side). Of several
    residual streams their mean is the input."""

    part: int
    layers: tuple[int, ...]
    norm: NormWeights
    projection: Linear

    @property
    def width(self) -> int:
        return self.projection.matrix.n_rows

    def note(self, g: Graph, x: Rows, layer: int) -> None:
        """Keep what ``layer`` reads, if it is one of these."""
        if not any(layer == mine for mine in self.layers):
            return
        width = self.projection.matrix.n_cols // len(self.layers)
        n_streams = x.width // width
        with g.on(self.part):
            if FEATURES not in g.kept:
                g.kept[FEATURES] = g.rows(width * len(self.layers))
            columns = g.kept[FEATURES].split(*[width] * len(self.layers))
            for mine, column in zip(self.layers, columns, strict=True):
                if mine == layer:
                    g.copy(x if n_streams == 1 else g.reduce(x, n_streams), column)

    def states(self, g: Graph) -> Rows:
        """The states of all tokens."""
        with g.on(self.part):
            return g.linear(g.norm(g.kept[FEATURES], self.norm), self.projection)


def given_states(g: Graph) -> Rows:
    """What a step is given."""
    states = g.context.inputs.states
    assert states is not None, "a model that reads no states"
    return g.given(states)


def load_fusion(source: TensorSource, h: Hyperparameters, part: int) -> Entry | None:
    """The entry before the layers that reads states; None for models that have none. ModelError
    for what is missing."""
    if "keys_of_states" in h.arch.quirks:
        return States(part, _norm(source, h, "enc.output_norm"))
    if "keys_of_target" in h.arch.quirks:
        return Projection(part, source.linear("nextn.pre_projection", 2 * h.state_size))
    if not source.has(f"{PROJECTION}.weight"):
        return None
    beside = Beside(*(_norm(source, h, f"blk.0.nextn.{name}") for name in ("enorm", "hnorm")))
    return Fusion(part, beside, source.linear(PROJECTION, 2 * h.n_embd))


def load_draft_attention(
    source: TensorSource, h: Hyperparameters, part: int, weights: SublayerWeights
) -> DraftAttention:
    """The first half of a draft's only layer; ModelError for what is missing."""
    beside = Beside(*(_norm(source, h, f"blk.0.{name}") for name in ("attn_norm", "attn_norm_2")))
    return DraftAttention(part, beside, weights, h.normed_residual)


def load_state_fusion(
    source: TensorSource, draft: GGUFFile, h: Hyperparameters, part: int
) -> StateFusion:
    """Of the file of a draft for the model of ``h``; ModelError for what is missing or does not
    fit."""
    layers = target_layers(draft)
    if not all(0 <= layer <= h.n_layers for layer in layers):
        raise ModelError(f"{draft.path}: states of layers {layers}, of {h.n_layers}")
    norm = COPY
    if draft.metadata.get(draft.arch_key("norm_before_fc"), False):
        norm = _norm(source, h, "enc.output_norm")
    return StateFusion(part, layers, norm, source.linear("fc", len(layers) * h.n_embd))


def _norm(source: TensorSource, h: Hyperparameters, name: str) -> NormWeights:
    weight = source.vector(f"{name}.weight")
    if weight is None:
        raise ModelError(f"tensor {name}.weight is missing")
    return NormWeights(weight, h.eps, layer=h.arch.layer_norm)
