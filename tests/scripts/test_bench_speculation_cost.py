"""What guesses cost where there is little to guess: scripts/bench_speculation_cost.py."""

from __future__ import annotations

import pytest
from asked_texts import TEXTS
from bench_engine import Run
from bench_speculation import Turn
from bench_speculation_cost import first_token, pace, summary, turns

from gguf_serve.engine.request import Request


@pytest.mark.parametrize("kind", TEXTS)
def test_each_text_is_another_one(kind: str) -> None:
    texts = TEXTS[kind]()
    assert len(texts) == len(set(texts)) >= 20
    assert max(map(len, texts)) < 3000


def test_kinds_come_in_turn_until_all_texts_have() -> None:
    found = list(turns(["code", "edit"], 8))
    assert [kind for kind, _ in found] == ["code", "edit", "code", "edit", "code", "code"]
    assert all(len(texts) == 8 for _, texts in found)
    assert len({text for _, texts in found for text in texts}) == 48


def test_what_is_measured_of_streams() -> None:
    """From when the last one has begun to when the first one has ended."""
    first, second = Run(Request((1,))), Run(Request((1,)))
    first.times, second.times = [1.0, 2.0, 2.0, 3.0], [2.5, 3.0, 3.0, 4.0]
    assert pace([first, second], 0.5) == pytest.approx(1e3 * 0.5 / 3)
    assert pace([first], 0.5) == pytest.approx(1e3 * 2.0 / 3)
    assert first_token([first], 0.5) == 500.0


def test_the_lines() -> None:
    found = [
        Turn("chat", 160, 40.0, 40.0, True, 0, 0),
        Turn("chat", 120, 40.0, 50.0, True, 12, 3),
        Turn("chat", 160, 44.0, 40.0, True, 8, 7),
    ]
    assert found[1].line == (
        "chat      120 tokens    40.00 ->   50.00 ms  0.800 x  3 of 12 right  the same text"
    )
    assert summary("chat", found) == (
        "chat: 3 turns, medians 40.00 -> 40.00 ms, gain: median 1.000, least 0.800, most 1.100; "
        "10 of 20 right (50%)"
    )
