"""Images as several views, or as a block of tokens with marks of its own: DeepSeek-OCR, Step 3 VL,
Granite 4 Vision, DeepSeek-V4.

Sources: as in prepare.py, which has the rows of all types.
"""

from __future__ import annotations

import math

import numpy as np

from gguf_serve.engine.media.piece import ImageLimits, Piece, Prepare, Tile, Words
from gguf_serve.engine.media.resize import (
    Color,
    Pixels,
    Size,
    bilinear_floats,
    pad,
    pad_nearest,
    size_of,
    stretch,
)
from gguf_serve.engine.media.tiles import best_canvas, cut

GREY: Color = (127, 127, 127)

# --- DeepSeek-OCR ---

OCR_OVERVIEW = 1024  # pixels a side, whatever the file says


def deepseek_ocr(tile: int, *, rows_together: bool) -> Prepare:
    """Tiles of that side if the image is larger than one, then the overview; tiles side by side
    are stacked in one input, or each is one."""

    def prepared(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
        size = OCR_OVERVIEW, OCR_OVERVIEW
        overview = Tile(pad_nearest(pixels, size, "bicubic", GREY))
        if max(size_of(pixels)) <= tile:
            return [overview, Words("\n")]
        columns, rows = _nearest_ratio(size_of(pixels), tile, limits.tiles)
        scaled = stretch(pixels, (columns * tile, rows * tile), "bicubic")
        tiles = cut(scaled, columns, rows)
        if rows_together:
            starts = range(0, len(tiles), columns)
            tiles = [np.concatenate(tiles[at : at + columns]) for at in starts]
        return [*map(Tile, tiles), overview, Words("\n")]

    return prepared


def _nearest_ratio(size: Size, tile: int, counts: tuple[int, int]) -> Size:
    """(columns, rows) of the proportions nearest to the image's; of equal ones the largest whose
    area the image's is more than half of."""
    wanted = np.float32(size[0]) / np.float32(size[1])
    least, most = counts
    shapes = [
        (w, h)
        for n in range(least, most + 1)
        for w in range(1, n + 1)
        for h in range(1, n + 1)
        if w * h == n
    ]
    best, difference = (1, 1), np.float32(np.inf)
    for columns, rows in shapes:
        found = abs(wanted - np.float32(columns) / np.float32(rows))
        enough = size[0] * size[1] > 0.5 * tile * tile * columns * rows
        if found < difference or (found == difference and enough):
            best, difference = (columns, rows), found
    return best


# --- Step 3 VL ---

STEP_SLICE, STEP_LONGEST = 504, 3024
STEP_SQUARE, STEP_WIDE = 1.5, 4.0  # proportions from which on images are cut otherwise
STEP_NARROW = 32  # pixels: wide images that are narrower are put on a square
STEP_ROUNDED = np.float32(0.2)


def step3(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    """Slices row by row, and the overview."""
    pixels = _step_canvas(pixels, limits.preproc_size or STEP_LONGEST)
    side = limits.image_size
    overview: list[Piece] = ["<im_start>", Tile(bilinear_floats(pixels, (side, side))), "<im_end>"]
    window = _step_window(size_of(pixels), side)
    if not window:
        return overview
    width, height = (_step_extent(side, window) for side in size_of(pixels))
    if (width, height) != size_of(pixels):
        pixels = stretch(pixels, (width, height), "bilinear")
    pieces: list[Piece] = []
    rows, columns = range(0, height, window), range(0, width, window)
    for y in rows:
        if y:
            pieces.append("<patch_newline>")
        for x in columns:
            slice_ = np.zeros((window, window, 3), np.uint8)
            part = pixels[y : y + window, x : x + window]
            slice_[: part.shape[0], : part.shape[1]] = part
            tile = Tile(bilinear_floats(slice_, (STEP_SLICE, STEP_SLICE)))
            pieces += ["<patch_start>", tile, "<patch_end>"]
    return [*pieces, *overview]


def _step_canvas(pixels: Pixels, longest: int) -> Pixels:
    """On a square if it is a narrow strip, and no larger than ``longest``."""
    width, height = size_of(pixels)
    if min(width, height) < STEP_NARROW and max(width, height) > STEP_WIDE * min(width, height):
        side = max(width, height)
        canvas = np.zeros((side, side, 3), np.uint8)
        canvas[:height, :width] = pixels
        pixels, (width, height) = canvas, (side, side)
    if max(width, height) <= longest:
        return pixels
    scale = np.float32(longest) / np.float32(max(width, height))
    size = (max(1, math.floor(np.float32(side) * scale)) for side in (width, height))
    return stretch(pixels, (next(size), next(size)), "bilinear")


def _step_window(size: Size, side: int) -> int:
    """A side of the slices, 0 for none."""
    longer, shorter = max(size), min(size)
    ratio = np.float32(longer) / np.float32(shorter)
    if longer <= side:
        return shorter if ratio > STEP_SQUARE else 0
    return min(shorter, STEP_SLICE) if ratio > STEP_WIDE else STEP_SLICE


def _step_extent(length: int, window: int) -> int:
    """A side that is no smaller than a window becomes whole windows."""
    ratio = np.float32(length) / np.float32(window)
    whole = math.floor(ratio)
    if whole < 1:
        return length
    return window * (whole + bool(ratio - np.float32(whole) > STEP_ROUNDED))


# --- Granite 4 Vision ---


def granite4(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    """The overview and the tiles of the best canvas, stacked in one input whose ``layout`` is
    (columns, rows) of tiles and the image's (width, height)."""
    side = limits.image_size
    width, height = best_canvas(size_of(pixels), limits.canvases)
    columns, rows = width // side, height // side
    canvas = pad(pixels, (width, height), "bicubic")
    views = [stretch(pixels, limits.square, "bicubic"), *cut(canvas, columns, rows)]
    return [Tile(np.concatenate(views), (columns, rows, *size_of(pixels))), Words("\n")]


def granite4_tokens(side: int, layout: tuple[int, ...]) -> int:
    """The tokens of an overview of side by side ones, and of the tiles, with a newline each row."""
    columns, rows, *image = layout
    _, _, width, height = without_padding((columns * side, rows * side), (image[0], image[1]))
    return side * side + (width + 1) * height


def without_padding(canvas: Size, image: Size) -> tuple[int, int, int, int]:
    """(x, y, width, height) of what an image of that size covers of a canvas in whose middle it
    is, in the canvas's units."""
    (width, height), (image_width, image_height) = canvas, image
    if np.float32(image_width) / image_height > np.float32(width) / height:
        y = (height - math.floor(image_height * width / image_width + 1e-7)) // 2
        return 0, y, width, height - 2 * y
    x = (width - math.floor(image_width * height / image_height + 1e-7)) // 2
    return x, 0, width - 2 * x, height


# --- DeepSeek-V4 ---

V4_ALIGN = 4  # tokens: the text model compresses keys in groups of so many
V4_TOKENS = 384  # the most of an image, with all marks
V4_RATIO = 8  # of width to height, from which on an image is stretched


def v4_tokens(columns: int, rows: int) -> int:
    """The tokens of an image of so many merged patches, without those that align it: a start, rows
    by pairs with a newline each, pads, an end."""
    rows += rows % 2
    return 2 + rows * (columns + 1) + 2 * (rows // 2 * (columns + 1) % 2)


def deepseek4(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    """The largest size of whole patches with few enough tokens."""
    (width, height), patch = size_of(pixels), limits.patch
    stretched = width >= V4_RATIO * height
    width = min(width, V4_RATIO * height)
    if width * height < limits.min_pixels:
        scale = math.sqrt(limits.min_pixels / (width * height))
        width, height = int(width * scale), int(height * scale)
    size = math.ceil(width / patch) * patch, math.ceil(height / patch) * patch
    most = (limits.max_tokens or V4_TOKENS) - (V4_ALIGN - 1)
    budget = most
    while _v4_size_tokens(size, limits) > most:
        size = _v4_smaller((width, height), limits, budget)
        budget -= 1
    if stretched:
        return [Tile(stretch(pixels, size, "bicubic"))]
    return [Tile(pad_nearest(pixels, size, "bicubic", GREY))]


def _v4_size_tokens(size: Size, limits: ImageLimits) -> int:
    return v4_tokens(*(math.ceil(side // limits.patch / limits.merge) for side in size))


def _v4_smaller(size: Size, limits: ImageLimits, most: int) -> Size:
    """A size of the image's proportions with about so many tokens."""
    (width, height), unit, patch = size, limits.unit, limits.patch
    ratio = height / width
    columns = math.sqrt((most - 2) / ratio + 0.25) - 0.5
    rows = columns * ratio
    if columns < 1:
        return unit, (most - 2) // 2 // 2 * 2 * unit
    if rows < 2:
        return max((most - 2) // 2 - 1, 2) * unit, 2 * unit
    whole = math.floor(columns), math.floor(rows) // 2 * 2
    scale = min(whole[0] * unit / width, whole[1] * unit / height)
    sides = (max(math.floor(side * scale / patch), 1) * patch for side in size)
    return next(sides), next(sides)
