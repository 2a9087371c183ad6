"""Towers whose patches are merged by convolutions, and whose tokens have vectors of the file in
between: Step 3 VL, HunyuanVL, DeepSeek-V4."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.encoders.geometry import (
    Grid,
    Ints,
    antialiased,
    bilinear,
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
    arranged,
    convolution,
    convolved,
    embedded,
    post_norm,
    pre_norm,
    tower,
)
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.encoders.vit import linear, mlp, normalized, transformer

ROPE_BASE = 10000.0


def step3(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    t = tower(spec)
    table = square_table(g.weights.floats("v.position_embd.weight"))
    x = pre_norm(g, embedded(g, spec, grid, resized(table, grid, antialiased)), t)
    rows, columns = coordinates(grid)
    rope = g.constant_rope(rotation(by_halves(columns, rows, t.head, ROPE_BASE)))
    x = transformer(g, x, t, lambda i: [x.count], rope, neox=False)
    x, grid = convolved(g, post_norm(g, x, t), grid, "mm.0", 2)
    x, grid = convolved(g, x, grid, "mm.1", 2)
    return Encoding(linear(g, x, "mm.model.fc"))


def hunyuan(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """A newline after each row of tokens, a begin and an end around all. The table of positions is
    taken for one a tenth of a place smaller."""
    w, t = g.weights, tower(spec, activation="gelu")
    table = square_table(w.floats("v.position_embd.weight"))
    x = pre_norm(g, embedded(g, spec, grid, resized(table, grid, partial(bilinear, more=0.1))), t)
    x = post_norm(g, transformer(g, x, t, lambda i: [x.count]), t)
    x = normalized(g, x, "mm.pre_norm", spec.eps, rms=True)
    x = g.linear(g.gather(x, squares(grid, spec.merge)), convolution(g, "mm.0"))
    x = g.linear(g.activate(x, "gelu"), convolution(g, "mm.2"))
    places = np.arange(x.count).reshape(grid[0] // spec.merge, -1)
    x = arranged(g, x, w.floats("v.image_newline")[None], _ended(places).reshape(-1))
    x = linear(g, x, "mm.model.fc")
    ends = np.stack([w.floats("mm.image_begin"), w.floats("mm.image_end")])
    x = arranged(g, x, ends, [-1, *range(x.count), -2])
    return Encoding(normalized(g, x, "mm.post_norm", spec.eps, rms=True))


def _ended(places: npt.NDArray[Any], end: int = -1) -> npt.NDArray[Any]:
    """Rows of places with one more at their end."""
    return np.pad(places, ((0, 0), (0, 1)), constant_values=end)


MARKS = ("v.token_embd.img_start", "v.token_embd.img_end", "v.image_newline",
         "v.token_embd.img_pad")  # fmt: skip
START, END, NEWLINE, PAD = range(-1, -5, -1)


def deepseek4(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """Rows of tokens lie in pairs, column by column; pads come before them where their place in
    the prompt wants it (VisionFile.n_before)."""
    w, t = g.weights, tower(spec, rms=True)
    rows, columns = coordinates(grid)
    rope = g.constant_rope(rotation(by_halves(rows, columns, t.head, ROPE_BASE)))
    x = pre_norm(g, embedded(g, spec, grid), t)
    x = post_norm(g, transformer(g, x, t, lambda i: [x.count], rope), t)
    merged = [-(-side // spec.merge) for side in grid]
    patches = np.full([side * spec.merge for side in merged], -1)
    patches[: grid[0], : grid[1]] = np.arange(x.count).reshape(grid)
    cells = patches.reshape(merged[0], spec.merge, merged[1], spec.merge).swapaxes(1, 2)
    x = g.gather(x, cells.reshape(-1, spec.merge**2), by_channel=True)
    x = mlp(g, x, "mm.1", "mm.2", "gelu_erf")
    marks = np.stack([w.floats(name) for name in MARKS])
    pad = marks[-1 - PAD]
    x = arranged(g, x, marks, _v4_order(np.arange(x.count).reshape(merged)))
    return Encoding(x, before=pad)


def _v4_order(places: npt.NDArray[Any]) -> Ints:
    places = _ended(places, NEWLINE)
    if len(places) % 2:
        places = np.concatenate([places, np.full((1, places.shape[1]), PAD)])
    pairs = places.reshape(-1, 2, places.shape[1]).swapaxes(1, 2).reshape(-1)
    last = [PAD, PAD] if len(pairs) // 2 % 2 else []
    return np.concatenate([[START], pairs, last, [END]]).astype(np.int32)
