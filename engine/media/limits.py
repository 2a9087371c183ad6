"""How large an image or a sound may be when it is decoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What is larger is refused, images before they are decoded."""

    max_pixels: int = 64_000_000
    max_seconds: float = 1800.0
