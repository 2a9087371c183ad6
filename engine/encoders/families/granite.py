"""Granite 4 Vision: a SigLIP tower whose layers are read by window Q-Formers, one for each part of
an embedding; the overview and all tiles are one input."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.encoders.families.qformer import EPS, qformer_layer
from gguf_serve.engine.encoders.geometry import Grid, squares
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.patches import Encoding, arranged, embedded, tower
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.encoders.vit import linear, normalized, transformer
from gguf_serve.engine.media.views import without_padding
from gguf_serve.engine.recording.rows import Rows

HEAD = 64  # values of a Q-Former's head


def granite4(
    layout: tuple[int, ...], g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool
) -> Encoding:
    """``layout``: see media/views.py. Rows of the tiles' tokens that no padding covers end with a
    newline each."""
    w, side = g.weights, grid[1]
    n_tiles, n = grid[0] // side, side * side
    positions = np.tile(w.floats("v.position_embd.weight"), (n_tiles, 1))
    seen: dict[int, Rows] = {}
    transformer(
        g, embedded(g, spec, grid, positions), tower(spec), lambda i: [n] * n_tiles,
        last=max(spec.feature_layers) + 1, keep=seen.__setitem__,
    )  # fmt: skip
    parts = [
        _projected(g, seen[layer], spec, f"v.proj_blk.{i}.", spec.query_offsets[i], n_tiles)
        for i, layer in enumerate(spec.feature_layers)
    ]
    x = g.side_by_side(parts)
    newline = np.tile(w.floats("v.image_newline"), len(parts))
    return Encoding(arranged(g, x, newline[None], _order(spec.granite4_side, layout)))


def _order(side: int, layout: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """The overview's tokens, then the tiles' row by row; -1 for a newline."""
    columns, rows, *image = layout
    tiles = side * side + np.arange(rows * columns * side * side)
    places = tiles.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, -1)
    canvas = columns * side, rows * side
    x, y, width, height = without_padding(canvas, (image[0], image[1]))
    places = np.pad(places[y : y + height, x : x + width], ((0, 0), (0, 1)), constant_values=-1)
    return np.concatenate([np.arange(side * side), places.reshape(-1)])


def _projected(g: Graph, x: Rows, spec: VisionFile, b: str, offset: int, n_tiles: int) -> Rows:
    """Each window's queries, in the order of their places; they begin as means of 2 x 2 places, or
    as the one at ``offset`` of them."""
    (queries, window), w = spec.query_sides, g.weights
    side = spec.limits.image_size // spec.patch
    new = spec.granite4_side
    x = normalized(g, x, f"{b}norm", spec.eps)
    windows = _of_tiles(squares((side, side), window), side * side, n_tiles)
    encoded = g.gather(x, windows.reshape(-1, 1))
    encoded = g.add(encoded, g.constant(np.tile(w.floats(f"{b}img_pos"), (len(windows), 1))))
    cells = _of_tiles(squares((side, side), side // new), side * side, n_tiles)
    if offset < 0:
        start = g.mixed(x, cells, np.full(cells.shape, 1 / cells.shape[1], np.float32))
    else:
        start = g.gather(x, cells[:, offset][:, None])
    places = _of_tiles(squares((new, new), queries), new * new, n_tiles)
    start = g.gather(start, places.reshape(-1, 1))
    start = g.add(start, g.constant(np.tile(w.floats(f"{b}query"), (len(places), 1))))
    y = qformer_layer(
        g, normalized(g, start, f"{b}post_norm", EPS), encoded, b, windows=len(windows),
        head=HEAD, activation="gelu_erf",
    )  # fmt: skip
    return linear(g, g.gather(y, np.argsort(places.reshape(-1))[:, None]), f"{b}linear")


def _of_tiles(places: npt.NDArray[np.int32], n: int, n_tiles: int) -> npt.NDArray[np.intp]:
    """Groups of places of one tile of n, for all tiles."""
    first = n * np.arange(n_tiles)[:, None, None]
    return (first + places).reshape(-1, places.shape[1]).astype(np.intp)
