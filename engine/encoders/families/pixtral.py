"""Encoders for images of any size with interleaved rotary positions: Pixtral, Mistral 3,
LightOnOCR, Kimi-VL, Muse Glimmer."""

from __future__ import annotations

import numpy as np

from gguf_serve.engine.encoders.geometry import (
    Floats,
    Grid,
    antialiased,
    bicubic,
    by_halves,
    coordinates,
    resized,
    rotation,
    square_table,
    squares,
    windows,
)
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.patches import Encoding, embedded, post_norm, pre_norm, tower
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.encoders.vit import linear, mlp, normalized, transformer

ROPE_BASE = 10000.0
MUSE_PATTERN = 4  # every so many layers sees all
PROJECTOR_EPS = 1e-5


def pixtral(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    w, t = g.weights, tower(spec, rms=True)
    rows, columns = coordinates(grid)
    x = pre_norm(g, embedded(g, spec, grid), t)
    rope = g.constant_rope(rotation(by_halves(rows, columns, t.head, ROPE_BASE, shift=True)))
    x = transformer(g, x, t, lambda i: [x.count], rope, neox=False)
    merge = spec.merge if w.has("mm.patch_merger.weight") else 1
    if merge > 1:
        x = normalized(g, x, "mm.input_norm", spec.eps, rms=True)
        x = g.gather(x, squares(grid, merge), by_channel=True)
        x = linear(g, x, "mm.patch_merger")
    x = mlp(g, x, "mm.1", "mm.2")
    if not w.has("v.token_embd.img_break"):
        return Encoding(x)
    end, columns_out = w.floats("v.token_embd.img_break"), grid[1] // merge

    def finish(rows: Floats) -> Floats:
        """The break token after every row of the image but the last."""
        return np.insert(rows, np.arange(columns_out, len(rows), columns_out), end, axis=0)

    return Encoding(x, finish=finish)


def kimivl(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    t = tower(spec)
    rows, columns = coordinates(grid)
    table = g.weights.floats("v.position_embd.weight")
    own_table = table.ndim == 3  # Kimi K2.5's has two sides
    positions = (
        resized(table, grid, bicubic)
        if own_table
        else resized(square_table(table), grid, antialiased)
    )
    x = embedded(g, spec, grid, positions)
    rope = g.constant_rope(rotation(by_halves(columns, rows, t.head, ROPE_BASE)))
    x = post_norm(g, transformer(g, x, t, lambda i: [x.count], rope, neox=False), t)
    x = normalized(g, x, "mm.input_norm", spec.eps if own_table else PROJECTOR_EPS)
    return Encoding(mlp(g, g.gather(x, squares(grid, spec.merge)), "mm.1", "mm.2"))


def muse_glimmer(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """Most layers attend inside windows as wide as the table of positions."""
    t = tower(spec, activation="gelu_erf")
    table = square_table(g.weights.floats("v.position_embd.weight"))
    order, sizes = windows(grid, len(table))
    rows, columns = (x[order] + 1 for x in coordinates(grid))
    rope = g.constant_rope(rotation(by_halves(columns, rows, t.head, ROPE_BASE)))

    def groups(layer: int) -> list[int]:
        whole = (layer + 1) % MUSE_PATTERN == 0 or layer == t.n_layers - 1
        return [len(order)] if whole else sizes

    x = pre_norm(g, embedded(g, spec, grid, resized(table, grid, antialiased)[order]), t)
    x = post_norm(g, transformer(g, x, t, groups, rope, neox=False), t)
    place = np.argsort(order)  # of each patch among the rows
    x = g.gather(x, place[squares(grid, spec.merge)], by_channel=True)
    x = g.activate(mlp(g, x, "mm.0", "mm.1", "gelu_erf"), "gelu_erf")
    return Encoding(linear(g, x, "mm.2"), order)
