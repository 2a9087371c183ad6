"""DeepSeek-OCR: SAM (https://arxiv.org/abs/2304.02643) whose places a second transformer reads,
CLIP in the first version, in the second one Qwen2 with as many queries. Several tiles may be
stacked in one input."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from gguf_serve.engine.encoders.geometry import (
    Floats,
    Grid,
    bicubic,
    bilinear,
    by_place,
    resized,
    rotation,
    square_table,
)
from gguf_serve.engine.encoders.graph import Graph, Heads
from gguf_serve.engine.encoders.patches import (
    Encoding,
    arranged,
    convolved,
    post_norm,
    pre_norm,
    tower,
)
from gguf_serve.engine.encoders.vision_file import OCR_COLUMNS, OCR_MERGE, Sam, VisionFile
from gguf_serve.engine.encoders.vit import linear, mlp, normalized, transformer
from gguf_serve.engine.recording.rows import Rows

SAM_EPS = 1e-6
SAM_GLOBAL = (2, 5, 8, 11)  # layers that see all places
CLIP_EPS = 1e-5
QWEN_BASE = 1e6
LANES = 16  # values that a head's size is a multiple of


def deepseek_ocr(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """Each row of tokens ends with a newline, those of tiles lie side by side."""
    assert spec.sam is not None
    w, n_tiles, side = g.weights, grid[0] // grid[1], grid[1] // OCR_MERGE
    seen = _sam(g, spec.sam, spec.activation, grid)
    x = g.side_by_side([_clip(g, spec, seen, n_tiles, side, like_llama_cpp), seen])
    x = linear(g, x, "mm.model.fc")
    places = np.arange(x.count).reshape(n_tiles, side, side).swapaxes(0, 1).reshape(side, -1)
    order = np.pad(places, ((0, 0), (0, 1)), constant_values=-1).reshape(-1)
    if side == OCR_COLUMNS:
        order = np.append(order, -2)
    ends = np.stack([w.floats("v.image_newline"), w.floats("v.view_seperator")])
    return Encoding(arranged(g, x, ends, order))


def deepseek_ocr2(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """Places see each other, queries all places and the queries before them."""
    assert spec.sam is not None
    w, seen = g.weights, _sam(g, spec.sam, spec.activation, grid)
    n, side = seen.count, grid[1] // OCR_MERGE
    queries = {size: w.floats(f"v.resample_query_{size}.weight") for size in (768, 1024)}
    x = arranged(g, seen, queries[grid[1] * spec.patch], [*range(n), *range(-1, -1 - n, -1)])
    t = tower(spec, rms=True, activation="silu", seen=n)
    angles = by_place(np.arange(2 * n), t.head, QWEN_BASE)
    x = transformer(g, x, t, lambda i: [2 * n], g.constant_rope(rotation(angles)))
    x = normalized(g, x, "v.post_ln", spec.eps, rms=True)
    x = linear(g, g.gather(x, np.arange(n, 2 * n)[:, None]), "mm.model.fc")
    if side != OCR_COLUMNS:
        return Encoding(x)
    return Encoding(arranged(g, x, w.floats("v.view_seperator")[None], [*range(n), -1]))


def _clip(
    g: Graph, spec: VisionFile, x: Rows, n_tiles: int, side: int, like_llama_cpp: bool
) -> Rows:
    """What CLIP makes of the places of each tile, which its class token follows."""
    w, n = g.weights, side * side
    t = replace(tower(spec), eps=CLIP_EPS, activation="gelu_quick")
    table = w.floats("v.position_embd.weight")
    positions = np.tile((_scrambled if like_llama_cpp else _positions)(table, side), (n_tiles, 1))
    order = np.concatenate([[*range(i * n, (i + 1) * n), -1] for i in range(n_tiles)])
    x = arranged(g, x, w.floats("v.class_embd").reshape(1, -1), order)
    x = pre_norm(g, g.add(x, g.constant(positions)), t)
    x = post_norm(g, transformer(g, x, t, lambda i: [n + 1] * n_tiles), t)
    return g.gather(x, np.flatnonzero(order >= 0)[:, None])


def _positions(table: Floats, side: int) -> Floats:
    """[side * side + 1, width]: those of a grid, then the class token's, the table's first row."""
    grid = resized(square_table(table[1:]), (side, side), bicubic)
    return np.concatenate([grid, table[:1]])


def _scrambled(table: Floats, side: int) -> Floats:
    """llama.cpp's where the grid is not the table's: it takes the table for a picture of one
    channel, and the class token's row for the last."""
    if len(table) - 1 == side * side:
        return _positions(table, side)
    n, width = side * side, table.shape[1]
    picture = resized(table[:-1, :, None], (side, side), bicubic).reshape(-1)
    rows = picture[np.arange(n * width) % n].reshape(n, width)
    last = table.reshape(-1)[64 : 64 + width]  # it counts bytes, of which 256 are 64 values
    return np.concatenate([rows[1:], last[None], rows[:1]])


# --- SAM ---


def _sam(g: Graph, sam: Sam, activation: str, grid: Grid) -> Rows:
    """A row for every 4 x 4 patches of each tile."""
    w, (height, side) = g.weights, grid
    n_tiles, patch = height // side, w.shape("v.sam.patch_embd.weight")[0]
    x = linear(g, g.input(height * side, 3 * patch * patch), "v.sam.patch_embd")
    positions = resized(w.floats("v.sam.pos_embd.weight"), (side, side), bicubic)
    x = g.add(x, g.constant(np.tile(positions, (n_tiles, 1))))
    for i in range(sam.n_layers):
        b, size = f"v.sam.blk.{i}.", side if i in SAM_GLOBAL else sam.window
        order = _windows(n_tiles, side, size)
        y = g.gather(normalized(g, x, f"{b}pre_ln", SAM_EPS), order[:, None])
        y = _sam_attention(g, y, sam, b, size)
        back = np.argsort(order, kind="stable")[len(order) - x.count :]
        x = g.add(x, g.gather(y, back[:, None]))
        y = normalized(g, x, f"{b}post_ln", SAM_EPS)
        x = g.add(x, mlp(g, y, f"{b}mlp.lin1", f"{b}mlp.lin2", activation))
    x = normalized(g, linear(g, x, "v.sam.neck.0"), "v.sam.neck.1", SAM_EPS)
    place = side, side
    x, place = convolved(g, x, place, "v.sam.neck.2", 1, planes=n_tiles)
    x = normalized(g, x, "v.sam.neck.3", SAM_EPS)
    for name in ("v.sam.net_2", "v.sam.net_3"):
        x, place = convolved(g, x, place, name, 2, planes=n_tiles)
    return x


def _windows(n_tiles: int, side: int, size: int) -> npt.NDArray[np.intp]:
    """Places by tile, window and row; -1 where a window goes over the edge."""
    n = -(-side // size)
    places = np.full((n_tiles, n * size, n * size), -1)
    places[:, :side, :side] = np.arange(n_tiles * side * side).reshape(n_tiles, side, side)
    return places.reshape(n_tiles, n, size, n, size).swapaxes(2, 3).reshape(-1)


def _sam_attention(g: Graph, x: Rows, sam: Sam, b: str, size: int) -> Rows:
    """Attention in windows of size x size places, with scores q k + q H(rows apart) +
    q W(columns apart): the last two are more values of the heads, which meet a 1 in those of the
    keys at that row and column."""
    n_heads, head = sam.n_heads, sam.width // sam.n_heads
    n_rows = x.count * n_heads
    q, k, v = (g.alone(part) for part in linear(g, x, f"{b}attn.qkv").split(*[sam.width] * 3))
    wide = -(-(head + 2 * size) // LANES) * LANES
    places = np.arange(n_rows) // n_heads % (size * size)
    parts = [q.reshaped(n_rows)]
    for name, at, padding in (
        ("h", places // size, 0), ("w", places % size, wide - head - 2 * size),
    ):  # fmt: skip
        table = f"{b}attn.pos_{name}.weight"
        matrix = g.weights.computed(
            f"{table} {size}", partial(_distances, g.weights.floats(table), size, head)
        )
        scores = g.linear(parts[0], matrix)
        parts.append(_by_distance(g, scores, at, size, padding))
    keys = np.zeros((size * size, wide - head), np.float32)
    every = np.arange(size * size)
    keys[every, every // size] = keys[every, size + every % size] = 1
    marks = g.gather(g.constant(keys), places[:, None])
    q = g.side_by_side(parts).reshaped(x.count)
    k = g.side_by_side([k.reshaped(n_rows), marks]).reshaped(x.count)
    heads = Heads(n_heads, wide, 1 / math.sqrt(head), value=head)
    windows = x.count // (size * size)
    return linear(g, g.attention(q, k, v, heads, [size * size] * windows), f"{b}attn.out")


def _distances(table: Floats, size: int, head: int) -> Floats:
    """[2 * size - 1, head]: a row for each distance, times what scores are divided by."""
    if len(table) != 2 * size - 1:
        table = (bilinear(2 * size - 1, len(table)) @ table).astype(np.float32)
    return table * np.float32(math.sqrt(head))


def _by_distance(g: Graph, scores: Rows, at: npt.NDArray[np.intp], size: int, padding: int) -> Rows:
    """[rows, size + padding]: what each row scores by its distance to the places 0 to size - 1;
    ``at`` is its own."""
    n = 2 * size - 1
    first = np.arange(scores.count) * n + at + size - 1
    index = first[:, None] - np.arange(size)
    return g.gather(scores.reshaped(scores.count * n), np.pad(
        index, ((0, 0), (0, padding)), constant_values=-1
    ))  # fmt: skip
