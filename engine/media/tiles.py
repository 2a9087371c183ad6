"""How a large image is cut: which grid of tiles, and the cutting itself."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gguf_serve.engine.media.resize import Pixels, Size, round_half_away


def best_canvas(size: Size, canvases: Iterable[Size]) -> Size:
    """Of several canvases the one on which most of the image's pixels remain, then the one
    that wastes least (LLaVA-NeXT's select_best_resolution)."""
    width, height = size

    def merit(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, -(canvas[0] * canvas[1] - used)

    return max(canvases, key=merit)


def grids(tile: int, least: int, most: int) -> list[Size]:
    """The canvases of a by b square tiles with least <= a * b <= most."""
    return [
        (a * tile, b * tile)
        for a in range(1, most + 1)
        for b in range(1, most + 1)
        if least <= a * b <= most
    ]


def nearest_grid(size: Size, counts: Iterable[int]) -> Size:
    """(columns, rows) with one of these products, nearest to the image in log aspect ratio."""
    wanted = math.log(size[0] / size[1])
    shapes = [(n // rows, rows) for n in counts for rows in range(n, 0, -1) if n % rows == 0]
    return min(shapes, key=lambda shape: abs(wanted - math.log(shape[0] / shape[1])))


def cut(pixels: Pixels, columns: int, rows: int) -> list[Pixels]:
    """The tiles of an image, row by row."""
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    return [
        pixels[y * height : (y + 1) * height, x * width : (x + 1) * width]
        for y in range(rows)
        for x in range(columns)
    ]


def area_size(size: Size, side: int, align: int, *, enlarge: bool) -> Size:
    """A size of the image's proportions and about side * side in area, in multiples of
    ``align`` (MiniCPM-V's find_best_resize); smaller images keep theirs unless ``enlarge``."""
    width, height = size
    if enlarge or width * height > side * side:
        ratio = width / height
        height = int(side / math.sqrt(ratio))
        width = int(height * ratio)
    return aligned(width, align), aligned(height, align)


def aligned(side: int, align: int) -> int:
    return max(round_half_away(side / align) * align, align)
