"""From a decoded image to what the encoder gets, and the text that the model expects around it.

Each projector type has its own way of resizing, padding and tiling, and its own marker texts;
a row of ``PREPARE`` says which. The result is a list of texts and tiles in prompt order.

Sources: the models' published processors, as restated in llama.cpp's tools/mtmd (mtmd.cpp,
mtmd-image.cpp); where the two disagree docs/multimodal.md says what is done here.
"""

from __future__ import annotations

import math

import numpy as np

from gguf_serve.engine.media.piece import ImageLimits, Piece, Prepare, Tile
from gguf_serve.engine.media.resize import (
    Color,
    Filter,
    Pixels,
    Size,
    pad,
    size_of,
    smart_size,
    stretch,
)
from gguf_serve.engine.media.tiles import aligned, area_size, best_canvas, cut, grids, nearest_grid
from gguf_serve.engine.media.views import GREY, deepseek4, deepseek_ocr, granite4, step3

CLIP_MEAN: Color = (122, 116, 104)  # what LLaVA pads with
YOUTU_PATCHES, YOUTU_STEPS = 62500, 50
MAX_SLICES = 9  # MiniCPM-V
LFM2_TILE, LFM2_TILES = 512, range(2, 11)
LLAMA4_GRID = 3  # tiles a side


def prepare(kind: str, pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    """The pieces of an image for projector type ``kind``; KeyError for an unknown type."""
    return PREPARE[kind](pixels, limits)


def _around(before: str, inner: Prepare, after: str) -> Prepare:
    return lambda pixels, limits: [before, *inner(pixels, limits), after]


def _padded_square(filter: Filter, fill: Color) -> Prepare:
    return lambda pixels, limits: [Tile(pad(pixels, limits.square, filter, fill))]


def _square(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    return [Tile(stretch(pixels, limits.square, "bicubic"))]


def _llava(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    if not limits.canvases:
        return [Tile(pad(pixels, limits.square, "bicubic", CLIP_MEAN))]
    return _tiled(pixels, limits, limits.canvases)


def _tiled(pixels: Pixels, limits: ImageLimits, canvases: tuple[Size, ...]) -> list[Piece]:
    """Tiles of the best canvas and the whole image; the latter alone if it is small."""
    side = limits.image_size
    overview = Tile(stretch(pixels, limits.square, "bicubic"))
    if max(size_of(pixels)) <= side:
        return [overview]
    width, height = best_canvas(size_of(pixels), canvases)
    canvas = pad(pixels, (width, height), "bicubic")
    return [*map(Tile, cut(canvas, width // side, height // side)), overview]


def _internvl(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    return _tiled(pixels, limits, tuple(grids(limits.image_size, *limits.tiles)))


def _llama4(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    side, one = limits.image_size, limits.square
    sides = range(1, LLAMA4_GRID + 1)
    canvases = tuple((a * side, b * side) for a in sides for b in sides)
    return _tiled(pixels, limits, tuple(c for c in canvases if c != one))


def _whole(filter: Filter, *, stretched: bool = False) -> Prepare:
    """One input of about the image's size, within limits; padded to it, or stretched."""

    def prepared(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
        size = smart_size(size_of(pixels), limits.unit, limits.min_pixels, limits.max_pixels)
        return [Tile(stretch(pixels, size, filter) if stretched else pad(pixels, size, filter))]

    return prepared


_smart = _whole("bicubic")


def _youtuvl(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    """Sides rounded up, of an image made smaller by steps of 2 % until there are few enough."""
    most = YOUTU_PATCHES * limits.patch**2
    for step in range(YOUTU_STEPS):
        size = tuple(
            max(math.ceil(side * (1 - step / YOUTU_STEPS) / limits.unit), 1) * limits.unit
            for side in size_of(pixels)
        )
        if size[0] * size[1] <= most:
            break
    return [Tile(stretch(pixels, (size[0], size[1]), "bilinear"))]


def _muse_glimmer(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    """Stretched to whole tokens, each side rounded up or down as the proportions change least."""
    width, height = size_of(pixels)
    sides = [
        [max(round_(side / limits.unit), 1) for round_ in (math.ceil, math.floor)]
        for side in (width, height)
    ]
    shapes = [(columns, rows) for columns in sides[0] for rows in sides[1]]
    columns, rows = min(shapes, key=lambda shape: abs(shape[1] / shape[0] - height / width))
    return [Tile(stretch(pixels, (columns * limits.unit, rows * limits.unit), "lanczos"))]


def _glm5v(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    """The image at the upper left of a canvas, enlarged only if that has too few pixels."""
    (width, height), unit = size_of(pixels), limits.unit
    scale = 1.0

    def canvas(scale: float) -> Size:
        return (
            max(math.ceil(width * scale / unit), 1) * unit,
            max(math.ceil(height * scale / unit), 1) * unit,
        )

    size = canvas(scale)
    if size[0] * size[1] < limits.min_pixels:
        scale = math.sqrt(limits.min_pixels / (width * height))
        size = canvas(scale)
    while size[0] * size[1] > limits.max_pixels and size[1] > unit:
        scale = (size[1] - unit) / height  # the largest height that fits
        size = canvas(scale)
    inner = max(int(width * scale), 1), max(int(height * scale), 1)
    result = np.zeros((size[1], size[0], 3), np.uint8)
    result[: inner[1], : inner[0]] = stretch(pixels, inner, "bicubic")
    return [Tile(result)]


def _lightonocr(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    width, height = size_of(pixels)
    scale = limits.preproc_size / max(width, height)
    width, height = (
        math.ceil(max(int(side * scale), 1) / limits.unit) * limits.unit for side in (width, height)
    )
    return [Tile(pad(pixels, (width, height), "bicubic"))]


def _idefics3(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    side, (width, height) = limits.image_size, size_of(pixels)
    longest = limits.preproc_size
    if width >= height:
        first = longest, _even(longest * height // width)
    else:
        first = _even(longest * width // height), longest
    columns, rows = (math.ceil(length / side) for length in first)
    scaled = stretch(pixels, first, "lanczos")
    scaled = stretch(scaled, (columns * side, rows * side), "lanczos")
    pieces: list[Piece] = []
    for i, tile in enumerate(cut(scaled, columns, rows)):
        row, column = divmod(i, columns)
        newline = "\n" if column == 0 and row > 0 else ""
        pieces.append(f"{newline}<fake_token_around_image><row_{row + 1}_col_{column + 1}>")
        pieces.append(Tile(tile))
    overview = Tile(stretch(scaled, limits.square, "lanczos"))
    pieces += ["\n\n<fake_token_around_image><global-img>", overview, "<fake_token_around_image>"]
    return pieces


def _even(side: int) -> int:
    return max(side + side % 2, 2)


def _minicpmv_slices(pixels: Pixels, limits: ImageLimits) -> tuple[Tile, list[list[Tile]]]:
    """The overview and the rows of slices of MiniCPM-V; few pixels: no slices."""
    size, side, unit = size_of(pixels), limits.image_size, limits.unit
    count = min(math.ceil(size[0] * size[1] / (side * side)), MAX_SLICES)
    overview_size = area_size(size, side, unit, enlarge=count <= 1)
    overview = Tile(stretch(pixels, overview_size, "bicubic"))
    if count <= 1:
        return overview, []
    counts = [n for n in (count - 1, count, count + 1) if 1 < n <= MAX_SLICES]
    columns, rows = nearest_grid(size, counts)
    cell = aligned(size[0], columns) // columns, aligned(size[1], rows) // rows
    width, height = area_size(cell, side, unit, enlarge=True)
    canvas = pad(pixels, (width * columns, height * rows), "bicubic")
    slices = [Tile(tile) for tile in cut(canvas, columns, rows)]
    return overview, [slices[i : i + columns] for i in range(0, len(slices), columns)]


def _minicpmv(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    overview, rows = _minicpmv_slices(pixels, limits)
    pieces: list[Piece] = ["<image>", overview, "</image>"]
    if limits.version == 2:  # MiniCPM-Llama3-V 2.5
        opening, closing, before, after = "<image>", "</image>", "<slice>", "</slice>"
    else:
        opening, closing, before, after = "<slice>", "</slice>", "", ""
    if rows:
        pieces.append(before)
    for i, row in enumerate(rows):
        pieces += ["\n"] if i else []
        for tile in row:
            pieces += [opening, tile, closing]
    if rows:
        pieces.append(after)
    return pieces


def _lfm2(pixels: Pixels, limits: ImageLimits) -> list[Piece]:
    unit, size = limits.unit, size_of(pixels)
    whole = smart_size(size, unit, limits.min_pixels, limits.max_pixels)
    thumbnail = Tile(stretch(pixels, whole, "bilinear"))
    area = aligned(size[0], unit) * aligned(size[1], unit)
    if area <= 2 * limits.max_pixels:
        return ["<|image_start|>", thumbnail, "<|image_end|>"]
    columns, rows = nearest_grid(size, LFM2_TILES)
    canvas = pad(pixels, (columns * LFM2_TILE, rows * LFM2_TILE), "bilinear")
    pieces: list[Piece] = ["<|image_start|>"]
    for i, tile in enumerate(cut(canvas, columns, rows)):
        row, column = divmod(i, columns)
        pieces += [f"<|img_row_{row + 1}_col_{column + 1}|>", Tile(tile)]
    return [*pieces, "<|img_thumbnail|>", thumbnail, "<|image_end|>"]


PREPARE: dict[str, Prepare] = {
    "mlp": _llava,
    "ldp": _llava,
    "ldpv2": _llava,
    "cogvlm": _llava,
    "gemma3": _around("<start_of_image>", _padded_square("bilinear", (0, 0, 0)), "<end_of_image>"),
    "gemma3nv": _around(
        "<start_of_image>", _padded_square("bilinear", (0, 0, 0)), "<end_of_image>"
    ),
    "gemma4v": _around("<|image>", _smart, "<image|>"),
    "gemma4uv": _around("<|image>", _smart, "<image|>"),
    "adapter": _padded_square("bicubic", (0, 0, 0)),
    "phi4": _whole("bilinear"),
    "janus_pro": _padded_square("bicubic", GREY),
    "nemotron_v2_vl": _padded_square("bicubic", (0, 0, 0)),
    "exaone4_5": _around("<vision>", _smart, "</vision>"),
    "glm5v": _around("<|begin_of_image|>", _glm5v, "<|end_of_image|>"),
    "ling3vl": _around("<|vision_start|>", _smart, "<|vision_end|>"),
    "youtuvl": _around("<|vision_start|>", _youtuvl, "<|vision_end|>"),
    "minimax_m3": _around(
        "]<]start of image[>[", _whole("bicubic", stretched=True), "]<]end of image[>["
    ),
    "muse-glimmer": _around("<|image_start|>", _muse_glimmer, "<|image_end|>"),
    "kimik25": _around("<|media_begin|>", _smart, "<|media_end|>"),
    "qwen2vl_merger": _around("<|vision_start|>", _smart, "<|vision_end|>"),
    "qwen2.5vl_merger": _around("<|vision_start|>", _smart, "<|vision_end|>"),
    "qwen3vl_merger": _around("<|vision_start|>", _smart, "<|vision_end|>"),
    "glm4v": _around("<|begin_of_image|>", _smart, "<|end_of_image|>"),
    "kimivl": _around("<|media_start|>", _smart, "<|media_end|>"),
    "dots_ocr": _around("<|img|>", _smart, "<|endofimg|>"),
    "paddleocr": _around("<|IMAGE_START|>", _smart, "<|IMAGE_END|>"),
    "pixtral": _around("", _smart, "[IMG_END]"),
    "lightonocr": _around("<|im_start|>", _lightonocr, "<|im_end|>"),
    "idefics3": _idefics3,
    "internvl": _around("<img>", _internvl, "</img>"),
    "llama4": _around("<|image_start|>", _llama4, "<|image_end|>"),
    "hunyuanvl": _around(
        "<｜hy_place▁holder▁no▁100｜>",
        _whole("lanczos", stretched=True),
        "<｜hy_place▁holder▁no▁101｜>",
    ),
    "yasa2": _around("<image>", _square, "</image>"),
    "mimovl": _around("<|vision_start|>", _smart, "<|vision_end|>"),
    "dots3note_v": _around("<|img|>", _smart, "<|endofimg|>"),
    "step3vl": step3,
    "deepseek4v": deepseek4,
    "deepseekocr": deepseek_ocr(640, rows_together=True),
    "deepseekocr2": deepseek_ocr(768, rows_together=False),
    "granite4_vision": granite4,
    "resampler": _minicpmv,
    "minicpmv4_6": _minicpmv,
    "lfm2": _lfm2,
}


def joined(pieces: list[Piece]) -> list[Piece]:
    """The same with neighbouring texts as one and empty ones left out."""
    result: list[Piece] = []
    for piece in pieces:
        if piece == "":
            continue
        if result and isinstance(piece, str) and isinstance(result[-1], str):
            result[-1] += piece
        else:
            result.append(piece)
    return result
