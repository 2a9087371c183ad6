"""Encoders after SigLIP: Gemma 3 and 4, Idefics 3 (SmolVLM), LFM2, Phi-4, Janus Pro, GLM-Edge."""

from __future__ import annotations

import math

import numpy as np
from msgspec.structs import replace

from gguf_serve.engine.encoders.geometry import (
    Grid,
    antialiased,
    by_halves,
    coordinates,
    resized,
    rotation,
    square_table,
    squares,
)
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.patches import (
    Encoding,
    embedded,
    patches_first,
    post_norm,
    tower,
    with_ends,
)
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.encoders.vit import gated, linear, mlp, normalized, transformer
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.kernels.rows.norm import NormWeights

PATCH_EPS = 1e-5  # of the norms of Gemma 4 without an encoder


def _siglip(g: Graph, spec: VisionFile, grid: Grid) -> Rows:
    """The transformer's output after its last norm."""
    t = tower(spec)
    table = square_table(g.weights.floats("v.position_embd.weight"))
    x = embedded(g, spec, grid, resized(table, grid, antialiased))
    return post_norm(g, transformer(g, x, t, lambda i: [x.count]), t)


def _pooled(g: Graph, x: Rows, grid: Grid, side: int) -> Rows:
    """The mean of each square of side by side patches."""
    index = squares(grid, side)
    return g.mixed(x, index, np.full(index.shape, 1 / side**2, np.float32))


def gemma3(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    x = _pooled(g, _siglip(g, spec, grid), grid, spec.merge)
    x = normalized(g, x, "mm.soft_emb_norm", spec.eps, rms=True)
    name = "mm.input_projection.weight"  # stored as [inputs, outputs]
    return Encoding(g.linear(x, g.weights.computed(name, lambda: g.weights.floats(name).T)))


def idefics3(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    x = g.gather(_siglip(g, spec, grid), squares(grid, spec.merge))
    return Encoding(linear(g, x, "mm.model.fc"))


def lfm2(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    x = g.gather(_siglip(g, spec, grid), squares(grid, spec.merge))
    if g.weights.has("mm.input_norm.weight"):
        x = normalized(g, x, "mm.input_norm", spec.eps)
    return Encoding(mlp(g, x, "mm.1", "mm.2"))


def phi4(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    return Encoding(mlp(g, _siglip(g, spec, grid), "mm.0", "mm.2"))


def janus(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """The model's GELU is the exact one, in the transformer too; llama.cpp's is of tanh."""
    if not like_llama_cpp:
        spec = replace(spec, activation="gelu_erf")
    return Encoding(mlp(g, _siglip(g, spec, grid), "mm.0", "mm.1", spec.activation))


def glm_edge(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """Four patches become one by a convolution; two vectors of the file are around all."""
    w, name = g.weights, "adapter.conv"
    x = g.gather(_siglip(g, spec, grid), squares(grid, 2))
    kernel = w.computed(
        name, lambda: patches_first(w.floats(f"{name}.weight")), lambda: w.floats(f"{name}.bias")
    )
    b = "adapter.linear."
    x = linear(g, g.linear(x, kernel), f"{b}linear")
    x = g.activate(normalized(g, x, f"{b}norm1", PATCH_EPS), "gelu")
    x = linear(g, gated(g, x, f"{b}gate", f"{b}dense_h_to_4h", "silu"), f"{b}dense_4h_to_h")
    return with_ends(g, x, "adapter.boi", "adapter.eoi")


def gemma4(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """Positions are a table for columns and one for rows, and rotary as well. Inside each half
    of a head pairs are (i, i + head / 4); moving the rows of Q and K makes them (i, i + head / 2).
    """
    w, head = g.weights, spec.width // spec.n_heads
    quarter = head // 4
    moved = np.concatenate([np.arange(quarter) + quarter * part for part in (0, 2, 1, 3)])
    order = (np.arange(spec.n_heads)[:, None] * head + moved).reshape(-1)
    t = tower(spec, rms=True, scale=1.0, norm_v=True, order=tuple(order), moved=tuple(moved))
    rows, columns = coordinates(grid)
    tables = w.floats("v.position_embd.weight")
    x = embedded(g, spec, grid, tables[0][columns] + tables[1][rows])
    rope = g.constant_rope(rotation(by_halves(columns, rows, head, 100.0)))
    x = transformer(g, x, t, lambda i: [x.count], rope)
    x = _pooled(g, x, grid, spec.merge)
    if w.has("v.std_scale"):
        factor = math.sqrt(spec.width)
        scale, bias = w.floats("v.std_scale"), w.floats("v.std_bias")
        x = g.mixed(x, np.arange(x.count)[:, None], (factor * scale)[None])
        x = g.add(x, g.constant(-(bias * scale)[None]))
    x = g.norm(x, NormWeights(None, spec.eps, weightless=True))
    return Encoding(linear(g, x, "mm.input_projection"))


def gemma4_unified(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """Gemma 4 without an encoder: patches go to the text model through one matrix."""
    w, (rows, columns) = g.weights, coordinates(grid)
    x = normalized(g, g.input(len(rows), 3 * spec.patch**2), "v.patch_norm.1", PATCH_EPS)
    x = normalized(g, linear(g, x, "v.patch_embd"), "v.patch_norm.2", PATCH_EPS)
    tables = w.floats("v.position_embd.weight")
    x = g.add(x, g.constant(tables[0][columns] + tables[1][rows]))
    x = g.norm(
        normalized(g, x, "v.patch_norm.3", PATCH_EPS), NormWeights(None, spec.eps, weightless=True)
    )
    return Encoding(linear(g, x, "mm.input_projection"))
