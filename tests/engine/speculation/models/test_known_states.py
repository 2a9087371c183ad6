"""What is known of a target's states, and zeros elsewhere."""

from __future__ import annotations

import numpy as np

from gguf_serve.engine.speculation.models.known_states import KnownStates


def rows(*numbers: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.array([[number, -number] for number in numbers], np.float32)


def found(known: KnownStates, start: int, end: int) -> list[float]:
    return [float(row[0]) for row in known.of(start, end)]


def test_states_that_come_one_after_another() -> None:
    known = KnownStates(7, 2)
    known.note(0, rows(1, 2, 3))
    known.note(3, rows(4))
    assert found(known, -1, 5) == [0, 1, 2, 3, 4, 0]
    known.forget_before(2)
    assert found(known, 0, 4) == [0, 0, 3, 4]
    known.forget_before(9)
    assert found(known, 0, 4) == [0, 0, 0, 0]


def test_what_was_rejected_is_replaced() -> None:
    known = KnownStates(7, 2)
    known.note(10, rows(1, 2, 3))
    known.note(11, rows(9))
    assert known.end == 12
    assert found(known, 9, 13) == [0, 1, 9, 0]
    known.note(40, rows(5))
    assert found(known, 11, 12) + found(known, 40, 41) == [0, 5]
