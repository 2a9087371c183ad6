"""What an image becomes for an encoder: texts and inputs in prompt order, and what its file says
about their sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct

from gguf_serve.engine.media.resize import Floats, Pixels, Size


class Tile(Struct, frozen=True):
    """An input of the encoder, before normalization: uint8 [height, width, 3], or float32 of the
    same range where it was resized in floats; of two frames of a video [height, width, 6].
    ``layout``: what else its tokens depend on."""

    pixels: Pixels | Floats
    layout: tuple[int, ...] = ()


class Words(str):
    """A text of an image that is tokenized as other texts are: no token is looked up by it."""


Piece = str | Tile


def in_pairs(frame: Sequence[Piece], following: Sequence[Piece]) -> list[Piece] | None:
    """The pieces of two frames as those of one, the following one's pixels beside the first's;
    None where their sizes differ."""
    if len(frame) != len(following):
        return None
    found: list[Piece] = []
    for first, second in zip(frame, following, strict=True):
        if isinstance(first, Tile) and isinstance(second, Tile):
            if first.pixels.shape != second.pixels.shape:
                return None
            first = Tile(np.concatenate([first.pixels, second.pixels], axis=2), first.layout)
        found.append(first)
    return found


class ImageLimits(Struct, frozen=True):
    """What a projector file says about the sizes of its inputs, in pixels and patches.

    ``merge``: patches a side that become one token. ``min_pixels``, ``max_pixels``: of an input
    of any size. ``canvases``: sizes to choose from (width, height). ``preproc_size``: the
    longest side before tiling. ``max_tokens``: of an image, where its type counts those.
    """

    image_size: int
    patch: int
    merge: int = 1
    min_pixels: int = 0
    max_pixels: int = 0
    canvases: tuple[Size, ...] = ()
    preproc_size: int = 0
    tiles: tuple[int, int] = (1, 12)
    version: int = 0
    max_tokens: int = 0

    @property
    def square(self) -> Size:
        return self.image_size, self.image_size

    @property
    def unit(self) -> int:
        """Pixels a side that become one token."""
        return self.patch * self.merge


Prepare = Callable[[Pixels, ImageLimits], list[Piece]]
