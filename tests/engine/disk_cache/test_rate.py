"""Whether to load or to compute."""

from __future__ import annotations

from gguf_serve.engine.disk_cache.rate import Rate


def test_what_is_not_known_is_found_out() -> None:
    rate = Rate()
    assert rate.is_worth(10**12, 1, 1e9)
    rate.note(1000, 1.0)
    assert rate.is_worth(10**12, 1, 0.0)


def test_the_faster_one_is_chosen() -> None:
    rate = Rate()
    rate.note(1000, 1.0)
    assert rate.is_worth(1000, 101, 100.0)
    assert not rate.is_worth(1000, 99, 100.0)


def test_the_last_loads_count_most() -> None:
    rate = Rate()
    for seconds in (1.0, 0.001, 0.001, 0.001):
        rate.note(1000, seconds)
    assert rate.is_worth(1000, 1, 500.0)


def test_a_slow_disk_is_tried_again_some_day() -> None:
    rate = Rate()
    rate.note(1000, 10.0)
    tries = [rate.is_worth(1000, 100, 100.0) for _ in range(40)]
    assert tries[0] is False
    assert tries[-1] is True


def test_nothing_is_learned_of_nothing() -> None:
    rate = Rate()
    rate.note(0, 1.0)
    rate.note(1000, 0.0)
    assert rate.is_worth(10**12, 1, 1e9)
