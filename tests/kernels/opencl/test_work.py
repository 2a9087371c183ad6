"""What launches have to read and multiply, counted by hand for small steps."""

from __future__ import annotations

import pytest

from gguf_serve.kernels.opencl.work import NO_WORK, Work


def test_a_matrix_is_read_once_and_multiplied_per_token() -> None:
    work = Work(weight_bytes=100, macs=7, count=1)
    assert work.kv_bytes([(3, 2)]) == 0
    assert work.multiply_adds((9, 4, 0, 0), [(3, 2)]) == 28


@pytest.mark.parametrize(
    ("window", "spans", "keys", "pairs"),
    [
        (0, [(0, 1)], 1, 1),
        (0, [(9, 1)], 10, 10),
        (0, [(4, 3)], 7, 5 + 6 + 7),
        (0, [(4, 3), (9, 1)], 17, 28),
        (4, [(9, 1)], 4, 4),
        (4, [(9, 3)], 6, 12),
        (4, [(0, 6)], 6, 1 + 2 + 3 + 4 + 4 + 4),
    ],
)
def test_keys_that_are_seen(
    window: int, spans: list[tuple[int, int]], keys: int, pairs: int
) -> None:
    work = Work(key_bytes=10, pair_macs=3, window=window)
    assert work.kv_bytes(spans) == 10 * keys
    assert work.multiply_adds((sum(n for _, n in spans), 1, 1, 1), spans) == 3 * pairs


def test_other_launches_count_nothing() -> None:
    assert NO_WORK.kv_bytes([(3, 2)]) == NO_WORK.multiply_adds((2, 1, 1, 1), [(3, 2)]) == 0
