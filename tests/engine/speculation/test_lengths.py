"""How much each stream guesses: what promises the most, and nobody's loss."""

from __future__ import annotations

import pytest

from gguf_serve.engine.speculation.lengths import Offer, lengths
from gguf_serve.engine.speculation.prices import FORGOTTEN, Prices


def linear(slope: float):
    return lambda n: 1.0 + slope * (n - 1)


def test_a_sure_guess_is_taken_whole_and_a_poor_one_not_at_all():
    assert lengths([Offer(8, 0.95)], 16, linear(0.1)) == [8]
    assert lengths([Offer(8, 0.1)], 16, linear(0.2)) == [0]
    assert lengths([Offer(0, 0.0)], 16, linear(0.0)) == [0]
    assert lengths([Offer(8, 0.95)], 3, linear(0.1)) == [3]


def test_a_guess_ends_where_its_next_token_costs_more_than_it_promises():
    n = lengths([Offer(30, 0.7)], 64, linear(0.2))[0]
    assert 1 <= n <= 5
    assert lengths([Offer(30, 0.7)], 64, linear(0.5))[0] < n


def test_a_step_that_costs_no_more_up_to_eight_tokens_is_filled():
    def steps(n: int) -> float:
        return float(-(-n // 8))

    assert lengths([Offer(30, 0.5)], 64, steps) == [7]


def test_who_guesses_nothing_is_not_slowed_down():
    offers = [Offer(8, 0.95), Offer(0, 0.0)]
    assert lengths(offers, 16, linear(0.1)) == [0, 0]
    assert lengths(offers, 16, linear(0.001))[0] == 8


def test_eight_streams_stop_by_themselves():
    assert lengths([Offer(8, 0.8)] * 8, 64, lambda n: float(n)) == [0] * 8


def test_prices_are_guessed_measured_and_forgotten():
    prices = Prices()
    assert prices.of(1) == 1.0 < prices.of(8)
    for _ in range(3):
        prices.note(1, 0.010)
    assert prices.of(1) == 0.010
    guessed = prices.of(5)
    prices.note(5, 9.0)  # which has waited for programs
    assert prices.of(5) == guessed
    for _ in range(2):
        prices.note(5, 0.012)
    assert prices.of(5) == 0.012
    assert prices.of(3) == 0.011
    prices.note(5, 100.0)
    assert 0.012 < prices.of(5) < 0.015
    for _ in range(FORGOTTEN + 1):
        prices.note(1, 0.010)
    assert prices.of(5) == pytest.approx(prices.of(1) + 4 * (prices.of(2) - prices.of(1)))


def test_what_a_further_token_costs_is_learnt():
    prices = Prices()
    for _ in range(40):
        prices.note(1, 0.010)
        prices.note(3, 0.012)
    assert prices.of(9) == pytest.approx(0.018, rel=0.02)
    assert prices.of(2) == pytest.approx(0.011)
