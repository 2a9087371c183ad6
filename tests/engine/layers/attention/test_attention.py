"""Buckets of distances, as they are published."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gguf_serve.engine.layers.attention.attention import DISTANCE, buckets


def expected(distance: int, n: int, both_ways: bool) -> int:
    """T5's definition, for one distance."""
    at = 0
    if both_ways:
        n //= 2
        at, distance = n * (distance > 0), abs(distance)
    else:
        distance = max(-distance, 0)
    exact = n // 2
    if distance < exact:
        return at + distance
    share = math.log(distance / exact) / math.log(DISTANCE / exact)
    return at + min(exact + math.floor(share * (n - exact) + 1e-9), n - 1)


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("n", [32, 20])
def test_buckets(n: int, both_ways: bool) -> None:
    distances = np.arange(-300, 301)
    found = buckets(distances, n, both_ways=both_ways)
    assert found.tolist() == [expected(int(d), n, both_ways) for d in distances]
    assert set(found[found > 0]) == set(range(1, n)) - ({n // 2} if both_ways else set())
