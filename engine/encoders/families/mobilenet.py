"""MobileNetV5 (blocks of https://arxiv.org/abs/2404.10518), Gemma 3n's encoder of images.

Rows are pixels of a grid that becomes smaller by stages; every norm is an RMS norm over channels.
"""

from __future__ import annotations

import math
import re

import numpy as np

from gguf_serve.engine.encoders.geometry import Grid, coordinates, pixel_rows, squares, under_kernel
from gguf_serve.engine.encoders.graph import Graph, Heads
from gguf_serve.engine.encoders.patches import Encoding
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.encoders.vit import linear, normalized
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.kernels.rows.norm import NormWeights

EPS = 1e-6
FUSED = (2, 3)  # stages whose outputs are read side by side
TOKENS = 16  # a side


def gemma3n(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    height, width = grid[0] * spec.patch, grid[1] * spec.patch
    x = g.input(height * width, 3)
    x, place = _convolved(g, x, (height, width), "v.conv_stem.conv", 2)
    x = _norm(g, x, "v.conv_stem.bn", gelu=True)
    fused: list[tuple[Rows, Grid]] = []
    for stage, blocks in enumerate(_blocks(g)):
        for i in range(blocks):
            x, place = _block(g, x, place, f"v.blk.{stage}.{i}.", 2 if i == 0 else 1)
        if stage in FUSED:
            fused.append((x, place))
    x = _norm(g, _fuse(g, *fused), "v.msfa.norm")
    x = normalized(g, g.scaled(x, math.sqrt(x.width)), "mm.soft_emb_norm", spec.eps, rms=True)
    x = linear(g, x, "mm.input_projection")
    return Encoding(g.norm(x, NormWeights(None, spec.eps, weightless=True)), rows=pixel_rows)


def _blocks(g: Graph) -> list[int]:
    """How many blocks each stage has, by the names of the file's tensors."""
    found = (re.match(r"v\.blk\.(\d+)\.(\d+)\.", name) for name in g.weights.names(".weight"))
    numbers = {(int(match[1]), int(match[2])) for match in found if match}
    stages = 1 + max(stage for stage, _ in numbers)
    return [sum(stage == i for stage, _ in numbers) for i in range(stages)]


def _norm(g: Graph, x: Rows, name: str, *, gelu: bool = False) -> Rows:
    x = normalized(g, x, name, EPS, rms=True)
    return g.activate(x, "gelu") if gelu else x


def _block(g: Graph, x: Rows, grid: Grid, b: str, stride: int) -> tuple[Rows, Grid]:
    """The block with the tensors ``b``; only the first one of a stage has a stride."""
    if g.weights.has(f"{b}conv_exp.weight"):
        return _edge_residual(g, x, grid, b, stride)
    if g.weights.has(f"{b}attn.query.proj.weight"):
        return _attention(g, x, grid, b), grid
    return _inverted_bottleneck(g, x, grid, b, stride)


def _edge_residual(g: Graph, x: Rows, grid: Grid, b: str, stride: int) -> tuple[Rows, Grid]:
    y, out = _convolved(g, x, grid, f"{b}conv_exp", stride)
    y = linear(g, _norm(g, y, f"{b}bn1", gelu=True), f"{b}conv_pwl")
    y = _norm(g, y, f"{b}bn2")
    return (g.add(x, y) if (y.width, out) == (x.width, grid) else y), out


def _inverted_bottleneck(g: Graph, x: Rows, grid: Grid, b: str, stride: int) -> tuple[Rows, Grid]:
    y, out = x, grid
    if g.weights.has(f"{b}dw_start.conv.weight"):
        y = _norm(g, _depthwise(g, y, grid, f"{b}dw_start.conv")[0], f"{b}dw_start.bn")
    y = _norm(g, linear(g, y, f"{b}pw_exp.conv"), f"{b}pw_exp.bn", gelu=True)
    if g.weights.has(f"{b}dw_mid.conv.weight"):
        y, out = _depthwise(g, y, grid, f"{b}dw_mid.conv", stride)
        y = _norm(g, y, f"{b}dw_mid.bn", gelu=True)
    y = _norm(g, linear(g, y, f"{b}pw_proj.conv"), f"{b}pw_proj.bn")
    scale = g.weights.vector(f"{b}layer_scale.gamma")
    if (y.width, out) == (x.width, grid):
        return g.add(x, y, scale=1.0 if scale is None else scale), out
    if scale is not None:
        factors = g.weights.floats(f"{b}layer_scale.gamma").reshape(1, -1)
        y = g.mixed(y, np.arange(y.count)[:, None], factors)
    return y, out


def _attention(g: Graph, x: Rows, grid: Grid, b: str) -> Rows:
    """All heads share one head of keys and values, of a grid that may be half as large a side."""
    y = _norm(g, x, f"{b}norm")
    q, k, v = (_attended(g, y, grid, f"{b}attn.{name}") for name in ("query", "key", "value"))
    heads = Heads(q.width // k.width, k.width, 1 / math.sqrt(k.width), n_kv=1)
    y = linear(g, g.cross_attention(q, k, v, heads), f"{b}attn.output.proj")
    scale = g.weights.vector(f"{b}layer_scale.gamma")
    return g.add(x, y, scale=1.0 if scale is None else scale)


def _attended(g: Graph, x: Rows, grid: Grid, name: str) -> Rows:
    """Queries, keys or values; of some pixels alone if the file has a convolution for that."""
    if g.weights.has(f"{name}.down_conv.weight"):
        x = _norm(g, _depthwise(g, x, grid, f"{name}.down_conv", 2)[0], f"{name}.norm")
    return linear(g, x, f"{name}.proj")


def _fuse(g: Graph, fine: tuple[Rows, Grid], coarse: tuple[Rows, Grid]) -> Rows:
    """Two stages side by side, the smaller one enlarged, through an FFN, in 16 x 16 means."""
    (x, grid), (y, small) = fine, coarse
    rows, columns = coordinates(grid)
    nearest = rows * small[0] // grid[0] * small[1] + columns * small[1] // grid[1]
    x = g.side_by_side([x, g.gather(y, nearest[:, None])])
    for name, gelu in (("pw_exp", True), ("pw_proj", False)):
        x = _norm(g, linear(g, x, f"v.msfa.ffn.{name}.conv"), f"v.msfa.ffn.{name}.bn", gelu=gelu)
    index = squares(grid, grid[0] // TOKENS)
    return g.mixed(x, index, np.full(index.shape, 1 / index.shape[1], np.float32))


def _convolved(g: Graph, x: Rows, grid: Grid, name: str, stride: int) -> tuple[Rows, Grid]:
    """A square convolution, padded as TensorFlow's SAME where it has a stride."""
    kernel = g.weights.shape(f"{name}.weight")[0]
    taps, out = under_kernel(grid, kernel, stride, same=stride > 1)
    return linear(g, g.gather(x, taps, by_channel=True), name), out


def _depthwise(g: Graph, x: Rows, grid: Grid, name: str, stride: int = 1) -> tuple[Rows, Grid]:
    """As _convolved, each channel by itself."""
    kernel = g.weights.floats(f"{name}.weight")
    taps, out = under_kernel(grid, kernel.shape[-1], stride, same=stride > 1)
    return g.mixed(x, taps, np.ascontiguousarray(kernel.reshape(x.width, -1).T)), out
