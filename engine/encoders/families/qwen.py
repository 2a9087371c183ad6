"""Encoders with rotary positions in two dimensions that merge 2 x 2 patches at the end:
Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Ling 3 VL, Youtu-VL, GLM-4V and 5V, dots.ocr, PaddleOCR-VL,
MiniMax M3, MiMo-VL."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.encoders.geometry import (
    Floats,
    Grid,
    Ints,
    aligned,
    antialiased,
    bicubic,
    by_halves,
    channels_last,
    coordinates,
    resized,
    rotation,
    square_table,
    squares,
    windows,
)
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.patches import (
    Encoding,
    embedded,
    patches_first,
    post_norm,
    pre_norm,
    tower,
)
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.encoders.vit import (
    gated,
    linear,
    mlp,
    normalized,
    optional_norm,
    transformer,
)
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.kernels.opencl.tensor import Tensor

ROPE_BASE = 10000.0
WINDOW_PIXELS = 112  # a side of Qwen2.5-VL's windows
PROJECTOR_EPS = 1e-5
YOUTU_EPS = 1e-6
MIMO_EPS = 1e-6


def _rope(
    g: Graph, spec: VisionFile, grid: Grid, order: Ints | None, head: int | None = None
) -> Tensor:
    rows, columns = (x if order is None else x[order] for x in coordinates(grid))
    head = head or spec.width // spec.n_heads
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
    cells, order, whole, parts = _windowed(spec, grid)
    pattern = spec.window_pattern

    def groups(layer: int) -> list[int]:
        return parts if pattern and (layer + 1) % pattern else whole

    x = embedded(g, spec, grid)
    x = transformer(g, x, t, groups, _rope(g, spec, grid, order))
    x = mlp(g, post_norm(g, x, t).reshaped(x.count // 4), "mm.0", "mm.2")
    return Encoding(x, order, _put_back(cells))


def _windowed(spec: VisionFile, grid: Grid) -> tuple[Ints, Ints, list[int], list[int]]:
    """The order of groups of 2 x 2 patches, window by window, and that of their patches; how many
    patches see each other where all do, and in windows."""
    side = (spec.window_size or WINDOW_PIXELS) // spec.patch // 2
    cells, sizes = windows((grid[0] // 2, grid[1] // 2), side)
    order = squares(grid, 2)[cells].reshape(-1)
    return cells, order, [len(order)], [4 * size for size in sizes]


def _put_back(cells: Ints) -> Callable[[Floats], Floats]:
    """Rows that were taken in the order ``cells``, in their own."""
    places = np.argsort(cells)
    return lambda rows: rows[places]


def mimovl(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """Most layers see so many patches before and after, in the order of rows or of columns, and
    have attention sinks."""
    w = g.weights
    n_kv = spec.n_kv or spec.n_heads
    head = w.shape("v.blk.0.attn_qkv.weight")[1] // (spec.n_heads + 2 * n_kv)
    groups = squares(grid, 2)
    order = groups.reshape(-1)
    by_columns = np.arange(len(groups)).reshape(grid[0] // 2, -1).T.reshape(-1)
    by_rows = np.argsort(by_columns)
    orders = {False: groups, True: groups[by_columns]}
    ropes = {
        turned: _rope(g, spec, grid, patches.reshape(-1), head)
        for turned, patches in orders.items()
    }
    x, turned = embedded(g, spec, grid), False
    for i, mode in enumerate(spec.window_modes):
        if (mode == BY_COLUMNS) != turned:
            x = _regrouped(g, x, by_rows if turned else by_columns)
            turned = not turned
        window = 0 if mode == ALL_PATCHES else spec.window_size
        t = tower(spec, rms=True, head_size=head, window=window)
        x = transformer(g, x, t, lambda i: [len(order)], ropes[turned], first=i, last=i + 1)
    if turned:
        x = _regrouped(g, x, by_rows)
    x = normalized(g, x, "v.post_ln", MIMO_EPS).reshaped(len(groups))
    return Encoding(mlp(g, x, "mm.0", "mm.2"), order)


ALL_PATCHES, BY_COLUMNS = -1, 1  # modes of a layer's attention


def _regrouped(g: Graph, x: Rows, order: npt.NDArray[np.intp]) -> Rows:
    """Groups of four rows in another order."""
    return g.gather(x.reshaped(len(order)), order[:, None]).reshaped(x.count)


def youtuvl(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """As Qwen2.5-VL, but for the layers that see all; patches are (y, x, channel)."""
    t = tower(spec)
    cells, order, whole, parts = _windowed(spec, grid)
    x = transformer(
        g, embedded(g, spec, grid), t, lambda i: whole if i in spec.window_layers else parts,
        _rope(g, spec, grid, order),
    )  # fmt: skip
    x = normalized(g, post_norm(g, x, t), "mm.input_norm", YOUTU_EPS, rms=True)
    x = mlp(g, x.reshaped(x.count // 4), "mm.0", "mm.2")
    return Encoding(x, order, _put_back(cells), channels_last)


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


def ling3vl(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """As Qwen3-VL with nothing for later layers, and a norm before patches are merged."""
    t, order = tower(spec), squares(grid, 2).reshape(-1)
    table = square_table(g.weights.floats("v.position_embd.weight"))
    x = embedded(g, spec, grid, resized(table, grid, aligned)[order])
    x = transformer(g, x, t, lambda i: [x.count], _rope(g, spec, grid, order))
    x = normalized(g, post_norm(g, x, t), "mm.input_norm", spec.eps)
    return Encoding(mlp(g, x.reshaped(x.count // 4), "mm.0", "mm.2"), order)


def glm4v(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """GLM-5V has no learned positions and no norm of patches, but bounds in its FFN."""
    w, t = g.weights, tower(spec, rms=True, limit=spec.ffn_limit)
    order = squares(grid, 2).reshape(-1)
    x = optional_norm(g, embedded(g, spec, grid), "v.norm_embd", t)
    if w.has("v.position_embd.weight"):
        positions = resized(square_table(w.floats("v.position_embd.weight")), grid, bicubic)
        x = g.add(x, g.constant(positions[order]))
    x = transformer(g, x, t, lambda i: [x.count], _rope(g, spec, grid, order))
    x = post_norm(g, x, t).reshaped(x.count // 4)
    name = "mm.patch_merger"
    merger = w.computed(name, lambda: patches_first(w.floats(f"{name}.weight")),
                        lambda: w.floats(f"{name}.bias"))  # fmt: skip
    x = linear(g, g.linear(x, merger), "mm.model.fc")
    x = g.activate(normalized(g, x, "mm.post_norm", PROJECTOR_EPS), "gelu_erf")
    x = gated(g, x, "mm.gate", "mm.up", "silu", spec.ffn_limit)
    return Encoding(linear(g, x, "mm.down"), order)


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


def minimax(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """Of a head only some values turn; they are moved to where pairs are (i, i + head / 2)."""
    head = spec.width // spec.n_heads
    moved, pairs = _minimax_pairs(head)
    order = (np.arange(spec.n_heads)[:, None] * head + moved).reshape(-1)
    t = tower(spec, activation="gelu_erf", order=tuple(order), moved=tuple(moved))
    patches = squares(grid, 2).reshape(-1)
    rows, columns = (x[patches] for x in coordinates(grid))
    angles = by_halves(rows, columns, 4 * pairs, ROPE_BASE)
    still = np.zeros((len(angles), head // 2 - 2 * pairs))
    rope = g.constant_rope(rotation(np.concatenate([angles, still], axis=1)))
    x = pre_norm(g, embedded(g, spec, grid), t)
    x = transformer(g, x, t, lambda i: [x.count], rope)
    x = mlp(g, x, "mm.1", "mm.2", "gelu_erf").reshaped(x.count // 4)
    return Encoding(mlp(g, x, "mm.merger.fc1", "mm.merger.fc2", "gelu_erf"), patches)


def _minimax_pairs(head: int) -> tuple[Ints, int]:
    """An order of a head's values, and how many pairs turn by each coordinate: a third of the
    head by the row, a third by the column, each by halves, after a third that does not turn."""
    pairs = head // 2 * 2 // 3 // 2
    row, column = 2 * pairs, 4 * pairs
    still = np.setdiff1d(np.arange(head), np.arange(row, row + 4 * pairs))
    halves = [
        np.concatenate([np.arange(pairs) + first, np.arange(pairs) + second, rest])
        for first, second, rest in (
            (row, column, still[: len(still) // 2]),
            (row + pairs, column + pairs, still[len(still) // 2 :]),
        )
    ]
    return np.concatenate(halves).astype(np.int32), pairs
