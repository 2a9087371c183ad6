"""MiniCPM-V: a SigLIP transformer, then a resampler (2.5, 2.6) or two mergers (4.6)."""

from __future__ import annotations

import math

import numpy as np
from msgspec.structs import replace

from gguf_serve.engine.encoders.geometry import Floats, Grid, Ints, coordinates, squares
from gguf_serve.engine.encoders.graph import Graph, Heads
from gguf_serve.engine.encoders.patches import Encoding, embedded, post_norm, tower
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.encoders.vit import attention, linear, mlp, normalized, transformer
from gguf_serve.engine.recording.rows import Rows

BUCKETS = 70  # positions a side
RESAMPLER_HEAD = 128


def _buckets(grid: Grid) -> Ints:
    """The row of the position table of each patch: a grid of any size laid on 70 x 70."""
    rows, columns = (BUCKETS * place // n for place, n in zip(coordinates(grid), grid, strict=True))
    return rows * BUCKETS + columns


def _start(g: Graph, spec: VisionFile, grid: Grid) -> Rows:
    table = g.weights.floats("v.position_embd.weight")
    return embedded(g, spec, grid, table[_buckets(grid)])


def _sinusoids(grid: Grid, width: int) -> Floats:
    """[patches, width]: sines and cosines of the column, then those of the row."""
    quarter = width // 4
    frequencies = 10000.0 ** (-np.arange(quarter) / quarter)
    rows, columns = coordinates(grid)
    parts = []
    for place in (columns, rows):
        angles = place[:, None] * frequencies
        parts += [np.sin(angles), np.cos(angles)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def resampler(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    w, t = g.weights, tower(spec)
    x = _start(g, spec, grid)
    x = post_norm(g, transformer(g, x, t, lambda i: [x.count]), t)
    values = normalized(g, linear(g, x, "resampler.kv"), "resampler.ln_kv", spec.eps)
    keys = g.add(values, g.constant(_sinusoids(grid, values.width)))
    queries = g.constant(w.floats("resampler.query"))
    queries = normalized(g, queries, "resampler.ln_q", spec.eps)
    n_heads = queries.width // RESAMPLER_HEAD
    heads = Heads(n_heads, RESAMPLER_HEAD, 1 / math.sqrt(RESAMPLER_HEAD))
    q, k, v = (
        linear(g, rows, f"resampler.attn.{name}")
        for name, rows in (("q", queries), ("k", keys), ("v", values))
    )
    y = linear(g, g.cross_attention(q, k, v, heads), "resampler.attn.out")
    y = normalized(g, y, "resampler.ln_post", spec.eps)
    return Encoding(linear(g, y, "resampler.proj"))


def minicpmv46(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """Patches are taken in 4 x 4 squares of 2 x 2 squares, so that both mergers read
    neighbours: inside the transformer 2 x 2 patches become one, at its end once more."""
    t = tower(spec)
    inner = spec.window_layers[0] + 1 if spec.window_layers else 0
    two_steps = g.weights.has("v.vit_merger.ln1.weight")
    fine = squares(grid, 2)
    coarse = squares((grid[0] // 2, grid[1] // 2), 2).reshape(-1)
    order = (fine[coarse] if two_steps else fine).reshape(-1)
    x = embedded(g, spec, grid, g.weights.floats("v.position_embd.weight")[_buckets(grid)[order]])
    n = x.count
    if two_steps:
        x = transformer(g, x, t, lambda i: [n], last=inner)
        x = _inner_merger(g, x, spec)
        x = transformer(g, x, t, lambda i: [n // 4], first=inner)
    else:
        x = transformer(g, x, t, lambda i: [n])
    x = post_norm(g, x, t)
    x = normalized(g, x.reshaped(x.count // 4), "mm.input_norm", spec.eps)
    return Encoding(mlp(g, x, "mm.up", "mm.down", "gelu_erf"), order)


def _inner_merger(g: Graph, x: Rows, spec: VisionFile) -> Rows:
    """Attention inside squares of 2 x 2, then an MLP of the four beside their mean."""
    name, squares_ = "v.vit_merger.", x.count // 4
    t = replace(tower(spec), prefix="")
    y = normalized(g, x, f"{name}ln1", spec.eps)
    x = g.add(x, attention(g, y, t, name, [4] * squares_, None, True))
    four = np.arange(x.count).reshape(squares_, 4)
    mean = g.mixed(x, four, np.full(four.shape, 0.25, np.float32))
    y = normalized(g, x.reshaped(squares_), f"{name}ds_ln", spec.eps)
    return g.add(mean, mlp(g, y, f"{name}ds_ffn_up", f"{name}ds_ffn_down"))
