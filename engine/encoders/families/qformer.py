"""Q-Former (https://arxiv.org/abs/2301.12597): queries that attend to each other and to what an
encoder gives of their window, each sublayer followed by a norm. Granite's."""

from __future__ import annotations

import math

from gguf_serve.engine.encoders.graph import Graph, Heads
from gguf_serve.engine.encoders.vit import linear, mlp, normalized
from gguf_serve.engine.recording.rows import Rows

EPS = 1e-12


def qformer_layer(
    g: Graph, x: Rows, encoded: Rows, b: str, *, windows: int, head: int, activation: str
) -> Rows:
    """Queries x and what they see, both window by window; tensors whose names begin with ``b``."""
    heads = Heads(x.width // head, head, 1 / math.sqrt(head))
    for name in ("self_attn", "cross_attn"):
        seen = x if name == "self_attn" else encoded
        q, k, v = (
            linear(g, rows, f"{b}{name}_{which}")
            for which, rows in (("q", x), ("k", seen), ("v", seen))
        )
        y = linear(g, g.cross_attention(q, k, v, heads, windows), f"{b}{name}_out")
        x = normalized(g, g.add(y, x), f"{b}{name}_norm", EPS)
    y = mlp(g, x, f"{b}ffn_up", f"{b}ffn_down", activation)
    return normalized(g, g.add(y, x), f"{b}ffn_norm", EPS)
