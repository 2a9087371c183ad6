"""What the encoder is given of an image, and the texts around it, equal to llama.cpp's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from vision_data import IMAGES, Reference

from gguf_serve.engine.encoders.vision_file import VisionFile, read_vision_file
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.media.piece import ImageLimits, Tile
from gguf_serve.engine.media.prepare import joined, prepare
from gguf_serve.engine.media.resize import pad, smart_size, stretch
from gguf_serve.engine.media.tiles import area_size, best_canvas, cut, grids, nearest_grid


@pytest.mark.parametrize("name", IMAGES)
def test_tiles_and_texts(
    vision_folder: Path, conformance_model: Callable[[str], Path], name: str
) -> None:
    reference = Reference(vision_folder, name)
    with open_gguf(conformance_model(reference.spec)) as gguf:
        spec = read_vision_file(gguf, *reference.token_limits)
    for key in reference.images:
        check(reference, spec, key)


def check(reference: Reference, spec: VisionFile, key: str) -> None:
    pieces = joined(prepare(spec.kind, reference.image(key), spec.limits))
    tiles = [piece for piece in pieces if isinstance(piece, Tile)]
    expected = reference.inputs(key)
    assert [list(tile.pixels.shape[:2]) for tile in tiles] == [one["input"] for one in expected]
    texts = "".join(piece for piece in pieces if isinstance(piece, str))
    around = re.fullmatch(r"<(s> |bos>)describe (.*?) +now", "".join(reference.texts(key)), re.S)
    assert around is not None
    assert texts == around[2].lstrip(" ")  # of SentencePiece
    for i, (tile, one) in enumerate(zip(tiles, expected, strict=True)):
        pixels = reference.pixels(key, i)
        if pixels is not None:
            np.testing.assert_array_equal(tile.pixels, pixels)
        elif f"input.{key}.{i}" in reference.arrays.files:
            normalized = (tile.pixels / np.float32(255) - spec.mean) / spec.std
            part = normalized[:: one["step"], :: one["step"]]
            np.testing.assert_allclose(part, reference.arrays[f"input.{key}.{i}"], atol=1e-5)
        else:
            data = np.ascontiguousarray(tile.pixels).tobytes()
            assert hashlib.sha256(data).hexdigest() == one["sha256"]


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def test_a_picture_is_padded_in_the_middle() -> None:
    padded = pad(picture(40, 10), (80, 40), "bicubic", (1, 2, 3))
    assert padded.shape == (40, 80, 3)
    assert (padded[:10] == (1, 2, 3)).all()
    assert (padded[30:] == (1, 2, 3)).all()
    np.testing.assert_array_equal(padded[10:30], stretch(picture(40, 10), (80, 20), "bicubic"))


def test_a_size_that_is_right_changes_nothing() -> None:
    image = picture(32, 16)
    assert pad(image, (32, 16), "bicubic") is image
    np.testing.assert_array_equal(stretch(image, (32, 16), "lanczos"), image)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((160, 160), (168, 168)),
        ((4000, 100), (4004, 112)),
        ((10, 10), (84, 84)),
        ((1, 900), (28, 896)),
    ],
)
def test_smart_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    found = smart_size(size, 28, 8 * 28 * 28, 4096 * 28 * 28)
    assert found == expected
    assert found[0] % 28 == found[1] % 28 == 0


def test_smart_size_stays_within_its_limits() -> None:
    width, height = smart_size((9000, 7000), 28, 0, 100 * 28 * 28)
    assert 0.8 * 100 * 28 * 28 < width * height <= 100 * 28 * 28


def test_the_canvas_that_keeps_most_of_the_image_wins() -> None:
    assert best_canvas((300, 130), [(112, 112), (224, 112), (112, 224)]) == (224, 112)
    assert best_canvas((50, 50), [(200, 200), (100, 100)]) == (100, 100)


def test_grids_have_so_many_tiles() -> None:
    assert set(grids(10, 2, 3)) == {(10, 20), (20, 10), (10, 30), (30, 10)}
    assert nearest_grid((300, 100), [3, 4]) == (3, 1)
    assert [tile.shape for tile in cut(picture(6, 4), 3, 2)] == [(2, 2, 3)] * 6


def test_a_small_picture_keeps_its_size_unless_it_may_grow() -> None:
    assert area_size((20, 10), 112, 14, enlarge=False) == (14, 14)
    assert area_size((200, 100), 112, 14, enlarge=True) == (154, 84)


@pytest.mark.parametrize("kind", ["idefics3", "lightonocr", "qwen2vl_merger", "resampler", "lfm2"])
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 3)])
def test_extreme_pictures_become_whole_tiles(kind: str, size: tuple[int, int]) -> None:
    limits = ImageLimits(
        64, 8, 2, 8 * 256, 4096 * 256, preproc_size=128, version=3
    )  # fmt: skip
    tiles = [p for p in prepare(kind, picture(*size), limits) if isinstance(p, Tile)]
    assert tiles
    for tile in tiles:
        assert min(tile.pixels.shape[:2]) > 0
        assert tile.pixels.shape[0] % 8 == tile.pixels.shape[1] % 8 == 0
