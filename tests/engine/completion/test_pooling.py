"""Pooling of hidden states that come in pieces, and lengths of vectors."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_serve.engine.completion.pooling import Pool, normalized

STATES = np.arange(24, dtype=np.float32).reshape(6, 4)
POOLED = {"none": STATES, "mean": STATES.mean(0)[None], "cls": STATES[:1], "last": STATES[5:]}


def pooled(pooling, pieces):
    pool = Pool(pooling, len(STATES))
    for start, count in pieces:
        wanted = pool.wants(start, count)
        pool.add(wanted.start, STATES[wanted.start : wanted.stop])
    return pool.vectors


@pytest.mark.parametrize("pooling", POOLED)
@pytest.mark.parametrize("pieces", [[(0, 6)], [(0, 1), (1, 3), (4, 2)], [(0, 4), (0, 3), (3, 3)]])
def test_pieces(pooling, pieces):
    """The last ones come twice in part, as after a pause."""
    assert np.array_equal(pooled(pooling, pieces), POOLED[pooling])


def test_what_is_not_needed_is_not_asked_for():
    assert list(Pool("cls", 6).wants(0, 6)) == [0]
    assert list(Pool("cls", 6).wants(2, 4)) == []
    assert list(Pool("last", 6).wants(0, 6)) == [5]
    assert list(Pool("last", 6).wants(0, 3)) == []


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(-1, [3.0, -4.0]), (0, [24570.0, -32760.0]), (1, [3 / 7, -4 / 7]), (2, [0.6, -0.8])],
)
def test_normalized(kind, expected):
    assert normalized((3.0, -4.0), kind) == pytest.approx(expected)
    assert normalized((0.0, 0.0), kind) == [0.0, 0.0]


@pytest.mark.parametrize("values", [(3e30, -4e30), (3e-30, -4e-30)])
def test_powers_beyond_all_numbers(values):
    assert normalized(values, 2000) == pytest.approx([0.75, -1.0])
