"""Resizing of 8-bit images as llama.cpp and the published processors do it: Pillow's algorithm.

Images are uint8 [height, width, 3]; sizes are (width, height), as in Pillow. The horizontal
pass always comes first and its result is rounded to 8 bits: Pillow itself changes the order for
some sizes, so each pass is a call of its own.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Size = tuple[int, int]
Filter = Literal["bilinear", "bicubic", "lanczos"]
Color = tuple[int, int, int]

BLACK: Color = (0, 0, 0)
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def size_of(pixels: Pixels) -> Size:
    return pixels.shape[1], pixels.shape[0]


def stretch(pixels: Pixels, size: Size, filter: Filter) -> Pixels:
    """The image in exactly that size, whatever becomes of its proportions."""
    image = Image.fromarray(pixels)
    for step in ((size[0], image.height), size):
        if step != image.size:
            image = image.resize(step, _FILTERS[filter])
    return np.asarray(image)


def pad(pixels: Pixels, size: Size, filter: Filter, fill: Color = BLACK) -> Pixels:
    """The image scaled until it fits, in the middle of a canvas of that size."""
    width, height = size_of(pixels)
    if (width, height) == size:
        return pixels
    scale = min(np.float32(size[0]) / np.float32(width), np.float32(size[1]) / np.float32(height))
    fitted = tuple(
        min(math.ceil(np.float32(side) * scale), most)
        for side, most in zip((width, height), size, strict=True)
    )
    canvas = np.empty((size[1], size[0], 3), np.uint8)
    canvas[:] = fill
    left, top = (size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2
    scaled = stretch(pixels, (fitted[0], fitted[1]), filter)
    canvas[top : top + fitted[1], left : left + fitted[0]] = scaled
    return canvas


def pad_nearest(pixels: Pixels, size: Size, filter: Filter, fill: Color) -> Pixels:
    """As ``pad``, with sides and places rounded to the nearest number instead of up and down."""
    if size_of(pixels) == size:
        return pixels
    scales = (np.float32(a) / np.float32(b) for a, b in zip(size, size_of(pixels), strict=True))
    scale = min(scales)
    width, height = (
        max(min(round_half_away(float(np.float32(side) * scale)), most), 1)
        for side, most in zip(size_of(pixels), size, strict=True)
    )
    left, top = round_half_away((size[0] - width) / 2), round_half_away((size[1] - height) / 2)
    canvas = np.empty((size[1], size[0], 3), np.uint8)
    canvas[:] = fill
    canvas[top : top + height, left : left + width] = stretch(pixels, (width, height), filter)
    return canvas


def bilinear_floats(pixels: Pixels, size: Size) -> Pixels | Floats:
    """float32 of the same range, between the four pixels that are nearest, whatever the scale; of
    that size already, the same pixels."""
    if size_of(pixels) == size:
        return pixels
    values = pixels.astype(np.float32)
    for axis, (wanted, found) in enumerate(zip(size[::-1], pixels.shape[:2], strict=True)):
        if wanted == found:
            continue
        at = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * np.float32(found / wanted)
        at -= np.float32(0.5)
        low = np.floor(at)
        share = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        first, second = (np.clip(low + i, 0, found - 1).astype(np.intp) for i in (0, 1))
        below, above = (np.take(values, index, axis) for index in (first, second))
        values = below + (above - below) * share
    return values


def round_half_away(value: float) -> int:
    """C's round() of a number that is not negative; Python's goes to the even neighbour."""
    return math.floor(value + 0.5)


def smart_size(size: Size, align: int, min_pixels: int, max_pixels: int) -> Size:
    """The size nearest to ``size`` whose sides are multiples of ``align`` and whose area is
    between the limits (Qwen2-VL's smart_resize), in 32-bit arithmetic as llama.cpp's."""
    width, height = np.float32(size[0]), np.float32(size[1])

    def sides(scale: np.float32, to_whole: object) -> Size:
        assert callable(to_whole)
        width_, height_ = (
            max(align, to_whole(np.float32(side * scale) / np.float32(align)) * align)
            for side in (width, height)
        )
        return width_, height_

    rounded = sides(np.float32(1), round_half_away)
    area = rounded[0] * rounded[1]
    if area > max_pixels:
        shrink = np.sqrt(np.float32(width * height / np.float32(max_pixels)))
        return sides(np.float32(1) / np.float32(shrink), math.floor)
    if area < min_pixels:
        grow = np.sqrt(np.float32(np.float32(min_pixels) / np.float32(width * height)))
        return sides(np.float32(grow), math.ceil)
    return rounded
