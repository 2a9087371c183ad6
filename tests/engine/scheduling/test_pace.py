"""The length of a step follows the measured speed."""

from __future__ import annotations

from gguf_serve.engine.scheduling.pace import BESIDE_SECONDS, LEAST_TOKENS, STEP_SECONDS, TILE, Pace


def test_begins_with_a_short_step() -> None:
    assert Pace(512).n_tokens == LEAST_TOKENS
    assert Pace(8).n_tokens == 8


def test_a_fast_device_takes_the_most_at_once() -> None:
    pace = Pace(512)
    pace.note(64, 0.01)
    assert pace.n_tokens == 512


def test_a_slow_device_takes_what_fits_into_a_step() -> None:
    pace = Pace(512)
    pace.note(64, 64 / 300)  # 300 tokens a second
    assert pace.n_tokens == int(300 * STEP_SECONDS) // TILE * TILE
    pace.note(128, 128.0)
    assert pace.n_tokens == LEAST_TOKENS


def test_single_tokens_say_nothing() -> None:
    pace = Pace(512)
    pace.note(4, 10.0)
    pace.note(64, 0.01)
    pace.note(4, 10.0)
    assert pace.n_tokens == 512


def test_steps_beside_others_are_shorter() -> None:
    pace = Pace(512)
    pace.note(512, 0.5)  # 1024 tokens a second
    assert pace.n_tokens == 512
    assert pace.n_beside == int(1024 * BESIDE_SECONDS) // TILE * TILE
    pace.note(64, 64 / 20)
    assert pace.n_beside == TILE
