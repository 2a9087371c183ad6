"""Image files to pixels: any colour mode, the right way up, within limits.

Pillow decodes. Transparent pixels show white, as on a page; of an animation the first frame
counts. What cannot be decoded is a MediaError whose text says why.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

from gguf_serve.engine.errors import MediaError
from gguf_serve.engine.media.limits import MediaLimits
from gguf_serve.engine.media.resize import Pixels

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
WHITE = (255, 255, 255, 255)
STRIP_ROWS = 256
ORIENTATION = 0x0112  # of EXIF: how to turn or mirror what has been stored
TURNS: dict[object, Callable[[Pixels], Pixels]] = {
    2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).transpose(1, 0, 2), 8: np.rot90,
}  # fmt: skip
MAX_RATIO = 200  # of the sides, as in Qwen2-VL's processor; scaled to a square they would not end


def decode_image(data: bytes, max_pixels: int = MediaLimits().max_pixels) -> Pixels:
    """uint8 [height, width, 3]; MediaError for anything that is no image of these formats."""
    if not data:
        raise MediaError("the image is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damage that Pillow has repaired
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                # WebP's decoder has the picture four times, and holds the interpreter's lock.
                most = max_pixels // 3 if image.format == "WEBP" else max_pixels
                _check_size(image.width, image.height, most)
                return np.ascontiguousarray(_rgb(image))
    except MediaError:
        raise
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise MediaError(f"the image is in none of these formats: {known}") from None
    except Image.DecompressionBombError as error:
        raise MediaError(f"the image is too large: {error}") from None
    except MemoryError:
        raise MediaError("the image needs more memory than there is") from None
    except Exception as error:  # whatever a parser trips over
        raise MediaError(f"the image cannot be decoded: {error}") from error


def n_pixels(data: bytes) -> int:
    """Of an image file, as its header says; 0 for what ``decode_image`` refuses."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # whatever a parser trips over
        return 0


def _check_size(width: int, height: int, max_pixels: int) -> None:
    size = f"the image has {width} x {height} pixels"
    if width * height > max_pixels:
        raise MediaError(f"{size}, more than the limit of {max_pixels}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise MediaError(f"{size}; a side may be {MAX_RATIO} times as long as the other")


def _rgb(image: Image.Image) -> Pixels:
    """The first frame in RGB, turned as its EXIF data says.

    A strip at a time: Pillow has 4 bytes for each pixel, every conversion as many again.
    """
    image.load()
    transparent = image.has_transparency_data
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP_ROWS):
        strip = image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height)))
        pixels[top : top + STRIP_ROWS] = _strip(strip, transparent)
    turn = TURNS.get(image.getexif().get(ORIENTATION))
    return pixels if turn is None else turn(pixels)


def _strip(strip: Image.Image, transparent: bool) -> Pixels:
    if strip.mode.startswith(("I", "F")):  # 16 bits or more in one channel
        return _from_deep(np.asarray(strip))
    if transparent:
        canvas = Image.new("RGBA", strip.size, WHITE)
        strip = Image.alpha_composite(canvas, strip.convert("RGBA"))
    return np.asarray(strip.convert("RGB"))


def _from_deep(values: np.ndarray) -> Pixels:
    """Grey values of 16 bits (or floats from 0 to 1) to RGB."""
    most = 1.0 if values.dtype.kind == "f" else 65535.0
    grey = np.clip(np.rint(values / most * 255.0), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
