"""Encoders with rotary positions in two dimensions that merge 2 x 2 patches at the end:
Qwen2-VL, Qwen2.5-VL, Qwen3-VL, GLM-4V, dots.ocr, PaddleOCR-VL."""

from __future__ import annotations

import re

import numpy as np

from gguf_serve.engine.encoders.geometry import (
    Floats,
    Grid,
    Ints,
    aligned,
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
from gguf_serve.engine.encoders.vit import gated, linear, mlp, normalized, transformer
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.kernels.opencl.tensor import Tensor

ROPE_BASE = 10000.0
WINDOW_PIXELS = 112  # a side of Qwen2.5-VL's windows
PROJECTOR_EPS = 1e-5


def _rope(g: Graph, spec: VisionFile, grid: Grid, order: Ints | None) -> Tensor:
    rows, columns = (x if order is None else x[order] for x in coordinates(grid))
    head = spec.width // spec.n_heads
    return g.constant_rope(rotation(by_halves(rows, columns, head, ROPE_BASE)))


def qwen2vl(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    order = squares(grid, 2).reshape(-1)
    t = tower(spec)
    x = embedded(g, spec, grid)
    x = transformer(g, x, t, lambda i: [x.count], _rope(g, spec, grid, order))
    x = post_norm(g, x, t).reshaped(x.count // 4)
    return Encoding(mlp(g, x, "mm.0", "mm.2"), order)


def qwen25vl(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """Most layers attend inside windows; patches are taken window by window."""
    t = tower(spec, rms=True)
    cells, sizes = windows((grid[0] // 2, grid[1] // 2), WINDOW_PIXELS // spec.patch // 2)
    order = squares(grid, 2)[cells].reshape(-1)
    pattern = spec.window_pattern
    whole, parts = [len(order)], [4 * size for size in sizes]

    def groups(layer: int) -> list[int]:
        return parts if pattern and (layer + 1) % pattern else whole

    x = embedded(g, spec, grid)
    x = transformer(g, x, t, groups, _rope(g, spec, grid, order))
    x = mlp(g, post_norm(g, x, t).reshaped(x.count // 4), "mm.0", "mm.2")

    def finish(rows: Floats) -> Floats:
        result = np.empty_like(rows)
        result[cells] = rows
        return result

    return Encoding(x, order, finish)


def qwen3vl(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """Some layers give more embeddings, which the text model adds after its first layers."""
    w, t = g.weights, tower(spec)
    order = squares(grid, 2).reshape(-1)
    positions = resized(square_table(w.floats("v.position_embd.weight")), grid, aligned)
    x = embedded(g, spec, grid, positions[order])
    found = (re.fullmatch(r"v\.deepstack\.(\d+)\.fc2\.weight", n) for n in w.names("fc2.weight"))
    deep = sorted(int(match[1]) for match in found if match)
    outputs: list[Rows] = []

    def keep(layer: int, x: Rows) -> None:
        if layer in deep:
            name = f"v.deepstack.{layer}."
            y = normalized(g, x.reshaped(x.count // 4), f"{name}norm", spec.eps)
            outputs.append(mlp(g, y, f"{name}fc1", f"{name}fc2"))

    x = transformer(g, x, t, lambda i: [x.count], _rope(g, spec, grid, order), keep=keep)
    main = mlp(g, post_norm(g, x, t).reshaped(x.count // 4), "mm.0", "mm.2")
    if not outputs:
        return Encoding(main, order)
    return Encoding(g.side_by_side([main, *outputs]), order)


def glm4v(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    w, t = g.weights, tower(spec, rms=True)
    order = squares(grid, 2).reshape(-1)
    x = normalized(g, embedded(g, spec, grid), "v.norm_embd", spec.eps, rms=True)
    positions = resized(square_table(w.floats("v.position_embd.weight")), grid, bicubic)
    x = g.add(x, g.constant(positions[order]))
    x = transformer(g, x, t, lambda i: [x.count], _rope(g, spec, grid, order))
    x = post_norm(g, x, t).reshaped(x.count // 4)
    name = "mm.patch_merger"
    merger = w.computed(name, lambda: _patches_first(w.floats(f"{name}.weight")),
                        lambda: w.floats(f"{name}.bias"))  # fmt: skip
    x = linear(g, g.linear(x, merger), "mm.model.fc")
    x = g.activate(normalized(g, x, "mm.post_norm", PROJECTOR_EPS), "gelu_erf")
    return Encoding(linear(g, gated(g, x, "mm.gate", "mm.up", "silu"), "mm.down"), order)


def _patches_first(kernel: Floats) -> Floats:
    """A convolution [out, in, y, x] as a matrix over patches side by side."""
    return kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1)


def dots_ocr(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    t = tower(spec, rms=True)
    x = pre_norm(g, embedded(g, spec, grid), t)
    x = transformer(g, x, t, lambda i: [x.count], _rope(g, spec, grid, None))
    x = normalized(g, x, "mm.post_norm", spec.eps, rms=True)
    x = normalized(g, x, "mm.input_norm", spec.eps)
    return Encoding(mlp(g, g.gather(x, squares(grid, 2)), "mm.0", "mm.2", "gelu_erf"))


def paddleocr(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    t = tower(spec)
    table = square_table(g.weights.floats("v.position_embd.weight"))
    x = embedded(g, spec, grid, resized(table, grid, antialiased))
    x = transformer(g, x, t, lambda i: [x.count], _rope(g, spec, grid, None))
    x = normalized(g, post_norm(g, x, t), "mm.input_norm", PROJECTOR_EPS)
    return Encoding(mlp(g, g.gather(x, squares(grid, 2)), "mm.1", "mm.2"))
