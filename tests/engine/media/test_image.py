"""Decoding of image files: formats, modes, orientation, limits, damage."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from gguf_serve.engine.errors import MediaError
from gguf_serve.engine.media.image import STRIP_ROWS, decode_image, n_pixels

COLORS = np.zeros((6, 9, 3), np.uint8)
COLORS[:, :3], COLORS[:, 3:6], COLORS[:, 6:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "BMP"])
def test_lossless_formats(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(COLORS), format, **options)
    np.testing.assert_array_equal(decode_image(data), COLORS)


def test_jpeg_in_rgb_and_in_cmyk() -> None:
    image = Image.fromarray(COLORS)
    for mode in ("RGB", "CMYK"):
        found = decode_image(encoded(image.convert(mode), "JPEG", quality=100, subsampling=0))
        assert np.abs(found.astype(int) - COLORS).max() < 12


def test_exif_orientation_is_followed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    data = encoded(Image.fromarray(COLORS), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(data), np.rot90(COLORS, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows_own(orientation: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise, "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode_image(data), expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_strips_are_the_image(mode: str) -> None:
    """What has more rows than a strip is as one of fewer would be."""
    n_rows = 2 * STRIP_ROWS + 3
    values = np.arange(n_rows * 4, dtype=np.uint16).reshape(n_rows, 4) * 13
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray(
        values.astype(np.uint8)
    ).convert(mode)  # fmt: skip
    found = decode_image(encoded(image, "PNG"))
    for top in range(0, n_rows, 100):
        part = image.crop((0, top, 4, min(top + 100, n_rows)))
        np.testing.assert_array_equal(found[top : top + 100], decode_image(encoded(part, "PNG")))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no Linux")
def test_a_large_canvas_takes_few_copies() -> None:
    """Of 16 million pixels: 4 bytes for each in Pillow, 3 in the result, little beside them."""
    data = encoded(Image.new("RGBA", (4000, 4000)), "PNG", compress_level=1)
    code = (
        "import sys; from gguf_serve.engine.media.image import decode_image\n"
        "def peak():\n"
        "    return next(int(x.split()[1]) for x in open('/proc/self/status') if 'VmHWM' in x)\n"
        "data = sys.stdin.buffer.read(); before = peak(); decode_image(data)\n"
        "print((peak() - before) // 1024)"
    )
    took = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert int(took.stdout) < 16 * 7 * 1.25 + 20


def test_a_webp_has_a_third_of_the_pixels() -> None:
    data = encoded(Image.new("RGB", (20, 20)), "WEBP")
    assert decode_image(data, 1200).shape == (20, 20, 3)
    with pytest.raises(MediaError, match="more than the limit of 399"):
        decode_image(data, 1199)


def test_the_size_is_known_from_the_header() -> None:
    assert n_pixels(encoded(Image.new("RGB", (20, 30)), "JPEG")) == 600
    assert n_pixels(b"no image") == 0


def test_transparent_pixels_are_white() -> None:
    rgba = np.dstack([COLORS, np.full(COLORS.shape[:2], 255, np.uint8)])
    rgba[0, :, 3] = 0
    found = decode_image(encoded(Image.fromarray(rgba), "PNG"))
    assert (found[0] == 255).all()
    np.testing.assert_array_equal(found[1:], COLORS[1:])


def test_a_palette_with_a_transparent_colour() -> None:
    image = Image.fromarray(COLORS).quantize(4)
    red = image.getpixel((0, 0))
    found = decode_image(encoded(image, "PNG", transparency=red))
    assert (found[:, :3] == 255).all()
    np.testing.assert_array_equal(found[:, 3:], COLORS[:, 3:])


def test_grey_of_sixteen_and_of_one_bit() -> None:
    deep = np.array([[0, 32768, 65535]], np.uint16)
    assert decode_image(encoded(Image.fromarray(deep), "PNG"))[0, :, 1].tolist() == [0, 128, 255]
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert decode_image(encoded(bits, "PNG"))[0, :, 2].tolist() == [0, 255]


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.fromarray(COLORS), Image.fromarray(255 - COLORS)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(data), COLORS)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    data = encoded(Image.new("1", (9000, 9000)), "PNG")
    assert len(data) < 50_000
    with pytest.raises(MediaError, match="9000 x 9000 pixels, more than the limit of 64000000"):
        decode_image(data)
    with pytest.raises(MediaError, match="too large"):  # so large that Pillow itself refuses it
        decode_image(encoded(Image.new("1", (20000, 20000)), "PNG"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<svg/>", "in none of these formats: PNG, JPEG"),
        (b"\x89PNG", "formats"),
    ],
)
def test_what_is_no_image(data: bytes, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        decode_image(data)


def test_a_format_that_is_not_offered() -> None:
    with pytest.raises(MediaError, match="formats"):
        decode_image(encoded(Image.fromarray(COLORS), "TIFF"))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]), st.data())
def test_damage_is_an_error_or_a_picture(format: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(Image.fromarray(COLORS), format))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(whole)))
    try:
        found = decode_image(bytes(whole[:end]))
    except MediaError:
        return
    assert found.dtype == np.uint8
    assert found.shape[2] == 3
