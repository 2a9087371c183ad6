"""What bench.py --disk makes of answers: scripts/bench_disk.py."""

from __future__ import annotations

import pytest
from bench_disk import Answer, DifferenceError, first_token_row, row


def answer(first: float, n_cached: int = 0, said: str = "") -> Answer:
    return Answer(10.0, [10.0 + first, 10.5 + first, 12.5 + first], [[said, None]], n_cached)


def test_rates_and_gaps() -> None:
    found = answer(0.25)
    assert (found.first, found.rate) == (0.25, 0.8)
    assert found.longest_gap() == 2000
    assert found.longest_gap(since=11.0) == 0.0


def test_a_row_of_first_tokens() -> None:
    found = first_token_row(512, answer(4.0), answer(0.5, 512, "a"), answer(0.125, 512, "a"))
    assert found == [
        "first token of 524 tokens, 512 of them on disk", "s", "4.00", "0.50", "0.12"
    ]  # fmt: skip


def test_a_prefix_of_another_length_is_told_and_not_compared() -> None:
    found = first_token_row(512, answer(4.0), answer(0.5, 480, "a"), answer(0.125, 512, "b"))
    assert found[0] == "first token of 524 tokens, 480 of them on disk (512 in memory)"


def test_other_tokens_are_an_error() -> None:
    with pytest.raises(DifferenceError, match=r"524 tokens: .*'b'.* instead of .*'a'"):
        first_token_row(512, answer(4.0), answer(0.5, 512, "b"), answer(0.1, 512, "a"))
    with pytest.raises(DifferenceError, match="nothing of 524 tokens was loaded"):
        first_token_row(512, answer(4.0), answer(0.5, 0), answer(0.1, 512))


def test_a_row_of_servers_in_turns() -> None:
    found = row("rate", "tok/s", [10.0, 20.0, 30.0], [9.0, 20.0, 33.0])
    assert found == ["rate", "tok/s", "20.00", "20.00 (1.000 of it)", ""]
