"""What a decoder has of an encoder's output: attention to it.

A sequence is the encoder's tokens, the prompt, and then the decoder's, which alone have keys of the
decoder's own attention. So in the pages of its layers the encoder's tokens have the K and V of
cross attention, and a mask says where the ones end and the others begin.
"""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.layers.attention.attention import ENCODED
from gguf_serve.engine.layers.sublayer import EMBEDDING
from gguf_serve.engine.recording.attention_verbs import Cache, Rotation
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.attention.attention import Mask
from gguf_serve.kernels.attention.rope import RopeStyle
from gguf_serve.kernels.rows.norm import NormWeights


class Handover(Struct, frozen=True):
    """The entry between encoder and decoder: the one's output is kept, the other begins with the
    embeddings of its own tokens."""

    part: int
    norm: NormWeights

    def __call__(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.part):
            g.kept[ENCODED] = g.norm(x, self.norm)
        return g.kept[EMBEDDING]


class CrossAttentionWeights(Struct, frozen=True):
    """``kv`` has one matrix per tensor type, in K, V order."""

    q: Linear
    kv: tuple[Linear, ...]
    output: Linear

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return cross_attention(g, x, self, layer)


def load_cross_attention(
    source: TensorSource, h: Hyperparameters, layer: int
) -> CrossAttentionWeights | None:
    """That of a layer of a decoder, None for others; ModelError for tensors that are missing or do
    not fit."""
    if not 0 < h.n_encoder <= layer:
        return None
    b = f"blk.{layer}.cross_attn_"
    source.check_shape(f"{b}norm.weight", (h.n_embd,))
    n_q, n_kv = h.n_heads[layer], h.n_kv[layer]
    for name, n in (("q", n_q * h.head), ("k", n_kv * h.head), ("v", n_kv * h.head_v)):
        source.check_rows(f"{b}{name}.weight", n)
    k, v = (source.part(f"{b}{name}", h.n_embd) for name in "kv")
    return CrossAttentionWeights(
        source.linear(f"{b}q", h.n_embd), source.stacked([k, v]),
        source.linear(f"{b}o", n_q * h.head_v),
    )  # fmt: skip


def cross_attention(g: Graph, x: Rows, w: CrossAttentionWeights, layer: int) -> Rows:
    """W (softmax(q K) V), K and V of the encoder's output."""
    h, cache = g.h, Cache.of_layer(g.context, layer)
    kv = g.linear(g.kept[ENCODED], w.kv)
    k, v = kv.split(h.n_kv[layer] * h.head, h.n_kv[layer] * h.head_v)
    g.store(k, v, cache, Rotation(RopeStyle(h.n_rot, h.neox)))
    y = g.attend(g.linear(x, w.q), h.n_heads[layer], cache, Mask(bidirectional=True))
    return g.output(y, w.output)
