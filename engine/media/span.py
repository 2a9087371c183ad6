"""Places of a prompt that an image or a sound takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:  # serve --help imports this, and no numpy
    import numpy.typing as npt


class MediaSpan(Struct, frozen=True, eq=False):
    """``count`` places of a prompt from ``start`` on whose embeddings come from an encoder.

    The prompt has negative token ids there (int64), other ones for other contents, so that
    prefixes agree where their images do. ``input`` is what the encoder is given (pixels or a
    spectrogram; or int32 [count, terms], tokens whose embeddings are added up), ``key`` says which
    it is. ``grid``: columns and rows of an image's tokens. ``together``: the tokens see each other,
    whatever their order. ``layout``: Tile.layout, or the tokens whose embeddings are added to a
    sound's; ``n_before``: the first tokens, which only align those of the image. ``marks``:
    Grid.marks.
    """

    start: int
    count: int
    key: bytes
    input: npt.NDArray[Any]
    grid: tuple[int, int]
    together: bool = False
    layout: tuple[int, ...] = ()
    n_before: int = 0
    marks: bool = False

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def ids(self) -> range:
        """What the prompt has in its places."""
        first = first_id(self.key)
        return range(first, first - self.count, -1)


def first_id(key: bytes) -> int:
    """The id of a content's first place, from which they count down: of 62 bits, so that those
    of other contents, in whatever process, are others."""
    return -1 - (int.from_bytes(key[:8], "big") >> 2)
