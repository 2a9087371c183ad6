"""How much faster files are rewritten with guesses: scripts/bench_speculation.py."""

from __future__ import annotations

from bench_prices import Price, table
from bench_speculation import FILES, Case, Turn, cases, line, summary


def test_twenty_files_are_edited_in_four_ways() -> None:
    asked = cases()
    assert len(asked) == len(set(asked)) == len(set(FILES)) == 20
    assert asked[0].startswith("Repeat this file exactly, but rename `")
    assert len({text.partition("\n")[0] for text in asked}) > 4
    assert max(map(len, asked)) < 3000


def test_the_table() -> None:
    turns = [Turn("rename", 200, 44.0, on, True, 100, 90) for on in (22.0, 11.0)]
    found = [
        Case(300, turns[0], 50.0, {"2,10": 30.0, "2,2": 33.0}),
        Case(300, turns[1], 50.0, {"2,10": 33.0, "2,2": 22.0}),
    ]
    assert line(found[0]) == (
        "rename    200 tokens    44.00 ->   22.00 ms  2.000 x  90 of 100 right  the same text"
        "  peer 50.00 -> 30.00 ms"
    )
    assert summary(found) == (
        "gain: median 3.00, least 2.00, most 4.00; peer's best / ours: median 1.68, least 1.36"
    )


def test_what_guesses_would_bring() -> None:
    found = [Price(1, 0.01, 0.03), Price(3, 0.03, 0.05)]
    assert [round(price.gain(0.5, 0.02), 3) for price in found] == [0.75, 0.469]
    assert table(0.02, found)[1].split() == [
        "1", "10.0", "30.0", "0.75", "0.80", "0.85", "0.90", "0.95"
    ]  # fmt: skip
