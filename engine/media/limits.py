"""How large an image or a sound may be when it is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_serve.engine.option import COUNT, option

MEDIA = "Images and sounds"


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What is larger is refused, images before they are decoded."""

    max_pixels: int = option(
        "--media-max-pixels", group=MEDIA, type=COUNT, default=64_000_000,
        help="most pixels of an image, of a WebP a third; larger ones are refused undecoded",
    )  # fmt: skip
    max_seconds: float = option(
        "--media-max-seconds", group=MEDIA, type=COUNT, default=1800,
        help="most seconds of a sound",
    )  # fmt: skip
