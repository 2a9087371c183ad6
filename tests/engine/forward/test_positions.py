"""Positions of text and images for M-RoPE."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_serve.engine.forward.positions import positions
from gguf_serve.engine.request import Grid


def test_text_counts_on_in_all_components() -> None:
    assert positions((), 5, 3).tolist() == [[5] * 4, [6] * 4, [7] * 4]


def test_an_image_takes_as_many_positions_as_its_longer_side() -> None:
    """Two tokens of text, an image of 2 x 3, text, a video of 4 frames of one token, text."""
    grids = (Grid(2, rows=2, columns=3), Grid(9, rows=1, columns=1, frames=4))
    expected = [
        [0, 0, 0, 0], [1, 1, 1, 1],
        [2, 2, 2, 0], [2, 2, 3, 0], [2, 2, 4, 0], [2, 3, 2, 0], [2, 3, 3, 0], [2, 3, 4, 0],
        [5, 5, 5, 5],
        [6, 6, 6, 0], [7, 6, 6, 0], [8, 6, 6, 0], [9, 6, 6, 0],
        [10, 10, 10, 10], [11, 11, 11, 11],
    ]  # fmt: skip
    assert positions(grids, 0, 15).tolist() == expected
    assert (grids[0].end, grids[0].n_positions) == (8, 3)


def test_marks_of_an_image_take_positions_as_text_does() -> None:
    """HunyuanVL: a token, 2 rows of 2 and their ends between two marks, a token."""
    grids = (Grid(1, rows=2, columns=2, marks=True, number=3),)
    expected = [
        [0, 0, 0, 0], [1, 1, 1, 1],
        [2, 0, 0, 3], [3, 1, 0, 3], [4, 2, 0, 3], [5, 0, 1, 3], [6, 1, 1, 3], [7, 2, 1, 3],
        [8, 8, 8, 8], [9, 9, 9, 9],
    ]  # fmt: skip
    assert positions(grids, 0, 10).tolist() == expected
    assert positions(grids, 4, 3).tolist() == expected[4:7]


@pytest.mark.parametrize("start", range(15))
def test_any_piece_is_that_piece_of_the_whole(start: int) -> None:
    grids = (Grid(2, 2, 3), Grid(9, 1, 1, 4))
    whole = positions(grids, 0, 20)
    for end in range(start, 20):
        assert np.array_equal(positions(grids, start, end - start), whole[start:end])
