"""ConvNeXt V2 (https://arxiv.org/abs/2301.00808), Yasa 2's encoder of images: rows are places of a
grid that becomes smaller by stages."""

from __future__ import annotations

import re

import numpy as np

from gguf_serve.engine.encoders.geometry import Grid, squares, under_kernel
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.patches import Encoding, convolution, embedded
from gguf_serve.engine.encoders.vision_file import POOLED, VisionFile
from gguf_serve.engine.encoders.vit import linear, mlp, normalized
from gguf_serve.engine.recording.rows import Rows


def yasa2(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    w = g.weights
    x = normalized(g, embedded(g, spec, grid), "v.patch_ln", spec.eps)
    for stage, n_blocks in enumerate(_blocks(g)):
        b = f"v.stage.{stage}."
        if w.has(f"{b}down.conv.weight"):
            x = g.gather(normalized(g, x, f"{b}down.ln", spec.eps), squares(grid, 2))
            x, grid = g.linear(x, convolution(g, f"{b}down.conv")), (grid[0] // 2, grid[1] // 2)
        for i in range(n_blocks):
            x = _block(g, x, grid, f"{b}blk.{i}.", spec.eps)
    if w.shape("v.vision_pos_embed")[-1] == x.count:
        x = g.add(x, g.constant(w.floats("v.vision_pos_embed")))
    index = squares(grid, grid[0] // POOLED)
    x = g.mixed(x, index, np.full(index.shape, 1 / index.shape[1], np.float32))
    return Encoding(mlp(g, x, "mm.0", "mm.2", "gelu_erf"))


def _blocks(g: Graph) -> list[int]:
    """How many blocks each stage has, by the names of the file's tensors."""
    found = (re.match(r"v\.stage\.(\d+)\.blk\.\d+\.", n) for n in g.weights.names("dw.weight"))
    numbers = [int(match[1]) for match in found if match]
    return [numbers.count(stage) for stage in range(1 + max(numbers, default=-1))]


def _block(g: Graph, x: Rows, grid: Grid, b: str, eps: float) -> Rows:
    kernel = g.weights.floats(f"{b}dw.weight")
    taps, _ = under_kernel(grid, kernel.shape[-1])
    y = g.mixed(x, taps, np.ascontiguousarray(kernel.reshape(x.width, -1).T))
    if g.weights.has(f"{b}dw.bias"):
        y = g.add(y, g.constant(g.weights.floats(f"{b}dw.bias")[None]))
    y = linear(g, normalized(g, y, f"{b}ln", eps), f"{b}pw1")
    y = _response(g, g.activate(y, "gelu_erf"), b)
    return g.add(x, linear(g, y, f"{b}pw2"))


def _response(g: Graph, x: Rows, b: str) -> Rows:
    """Global response normalization: x (1 + w r) + b, r the Euclidean norm of a column divided by
    the mean of all columns' norms."""
    w, n, width = g.weights, x.count, x.width
    squares_ = g.mixed(g.activate(x, "none", times=x), np.arange(n)[None])
    norms = g.activate(squares_, "sqrt")
    mean = g.mixed(norms.reshaped(width), np.arange(width)[None],
                   np.full((1, width), 1 / width, np.float32))  # fmt: skip
    relative = g.activate(mean, "inverse", times=norms)
    factors = g.mixed(relative, np.zeros((1, 1)), w.floats(f"{b}grn.weight").reshape(1, -1))
    factors = g.add(factors, g.constant(np.ones((1, width))))
    y = g.activate(g.gather(factors, np.zeros((n, 1))), "none", times=x)
    return g.add(y, g.constant(w.floats(f"{b}grn.bias").reshape(1, -1)))
