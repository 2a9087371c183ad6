"""How far rounding moves what a model says: scripts/compare_divergence.py."""

from __future__ import annotations

from math import log

import pytest
from compare_divergence import Said, divergence, mean_divergence


def test_nothing_is_nowhere_from_itself() -> None:
    said = {1: log(0.5), 2: log(0.25), 3: log(0.25)}
    assert divergence(said, said) == pytest.approx(0.0, abs=1e-15)
    some = {1: log(0.5), 2: log(0.25)}  # and a quarter that is not told apart
    assert divergence(some, some) == pytest.approx(0.0, abs=1e-15)


def test_tokens_that_are_not_in_both_count_together() -> None:
    """Sum of p log(p / q) over what both have, and over the rest as one token."""
    truth = {1: log(0.5), 2: log(0.3), 3: log(0.1)}
    found = {1: log(0.25), 2: log(0.6), 4: log(0.1)}
    expected = 0.5 * log(0.5 / 0.25) + 0.3 * log(0.3 / 0.6) + 0.2 * log(0.2 / 0.15)
    assert divergence(truth, found) == pytest.approx(expected)
    assert divergence(truth, found) > 0


def test_of_a_text() -> None:
    """The mean of its places; the perplexity is of what comes."""
    even, odd = {1: log(0.5), 2: log(0.5)}, {1: log(0.25), 2: log(0.75)}
    truth, found = (Said([even, row], [log(0.5), log(0.125)]) for row in (even, odd))
    assert truth.perplexity == pytest.approx(4.0)
    expected = 0.5 * log(0.5 / 0.25) + 0.5 * log(0.5 / 0.75)
    assert mean_divergence(truth, found) == pytest.approx(expected / 2)
    with pytest.raises(ValueError, match="shorter"):
        mean_divergence(truth, Said([even], [log(0.5)]))
