"""The likeliest tokens of rows of logits against a stable sort."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from launching import run

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import read, upload, write
from gguf_serve.kernels.rows.topk import (
    CAPACITY,
    MAX_K,
    Found,
    is_broken,
    parse,
    topk,
    topk_buffers,
)

Floats = npt.NDArray[np.float32]


def find(
    device: Device,
    programs: Programs,
    logits: Floats,
    wanted: list[tuple[int, int]],
    allowed: dict[int, list[int]] | None = None,
) -> list[Found | None]:
    """What is found in each row for its (k, picked token), of the tokens allowed there."""
    records = find_records(device, programs, logits, wanted, allowed)
    assert not any(is_broken(record) for record in records)
    return [parse(record, k) for record, (k, _) in zip(records, wanted, strict=True)]


def find_records(
    device: Device,
    programs: Programs,
    logits: Floats,
    wanted: list[tuple[int, int]],
    allowed: dict[int, list[int]] | None = None,
) -> npt.NDArray[np.int32]:
    allowed = allowed or {}
    buffers = topk_buffers(device, *logits.shape, 3)
    masks = [list(allowed).index(i) if i in allowed else -1 for i in range(len(logits))]
    rows = [(k, picked, mask, 1) for (k, picked), mask in zip(wanted, masks, strict=True)]
    write(device, buffers.wanted, np.array(rows, np.int32), wait=True)
    bits = np.zeros((3, buffers.masks.shape[1] * 32), np.uint8)
    for mask, tokens in enumerate(allowed.values()):
        bits[mask, tokens] = 1
    words = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    write(device, buffers.masks, words, wait=True)
    x = upload(device, logits)
    run(device, programs, len(logits), lambda tape: topk(tape, x, buffers))
    assert np.array_equal(read(x, None, device.queue), logits, equal_nan=True)
    return read(buffers.found, None, device.queue)


def assert_best(found: Found | None, row: Floats, k: int, picked: int) -> None:
    __tracebackhide__ = True
    assert found is not None
    best = np.lexsort((np.arange(len(row)), -row))[:k]
    assert np.array_equal(found.ids, best)
    assert np.array_equal(found.logits, row[best])
    assert found.picked == row[picked]
    top = float(row.max())
    log_sum_exp = top + np.log(np.exp(row.astype(np.float64) - top).sum())
    assert found.log_sum_exp == pytest.approx(log_sum_exp, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("n_vocab", [128, 500, 512, 1000, 20_001, 128_256])
def test_random_rows(device: Device, programs: Programs, n_vocab: int) -> None:
    logits = 3 * np.random.default_rng(1).standard_normal((4, n_vocab), dtype=np.float32)
    # With few more segments than k, more than k reach the threshold than the list holds.
    most = {1000: 3, 20_001: 40}.get(n_vocab, min(MAX_K, n_vocab))
    wanted = [(1, 0), (3, n_vocab - 1), (most, 5), (2, 77)]
    found = find(device, programs, logits, wanted)
    for row, result, (k, picked) in zip(logits, found, wanted, strict=True):
        assert_best(result, row, k, picked)


def test_equal_logits_come_by_id(device: Device, programs: Programs) -> None:
    logits = np.random.default_rng(2).integers(-9, 9, (2, 20_000)).astype(np.float32)
    logits[0, [19_999, 3, 700]] = 50
    logits[0, [5, 12_000]] = 40
    logits[1, ::100] = 20  # 200 of them
    wanted = [(4, 0), (60, 0)]
    for row, result, (k, picked) in zip(
        logits, find(device, programs, logits, wanted), wanted, strict=True
    ):
        assert_best(result, row, k, picked)


def test_more_ties_than_the_list_holds(device: Device, programs: Programs) -> None:
    logits = np.zeros((2, 20_000), np.float32)
    logits[1, 7] = 1
    nothing, one = find(device, programs, logits, [(2, 3), (1, 7)])
    assert nothing is None
    assert_best(one, logits[1], 1, 7)


def test_fewer_segments_than_k(device: Device, programs: Programs) -> None:
    """Then the whole row goes to the list."""
    logits = np.random.default_rng(3).standard_normal((1, CAPACITY), dtype=np.float32)
    for k in (5, 200):
        assert_best(find(device, programs, logits, [(k, 1)])[0], logits[0], k, 1)


def test_minus_infinity(device: Device, programs: Programs) -> None:
    """Whole stretches that are impossible, and a row with fewer possible tokens than k."""
    logits = np.full((2, 5000), -np.inf, np.float32)
    logits[0, [3, 900, 4000, 4999]] = 1, 3, 2, 3
    logits[1, 4999] = -2
    found = find(device, programs, logits, [(3, 3), (1, 0)])
    assert_best(found[0], logits[0], 3, 3)
    assert_best(found[1], logits[1], 1, 0)


def test_extreme_logits(device: Device, programs: Programs) -> None:
    logits = np.random.default_rng(4).uniform(-1e30, 1e30, (2, 6000)).astype(np.float32)
    logits[1] = -np.abs(logits[1])
    found = find(device, programs, logits, [(10, 0), (10, 0)])
    for row, result in zip(logits, found, strict=True):
        assert_best(result, row, 10, 0)


@pytest.mark.parametrize("n_vocab", [128, 1001, 151_936])
def test_masked_rows(device: Device, programs: Programs, n_vocab: int) -> None:
    """Only the allowed are found, if need be fewer than k; the log-sum-exp is that of all."""
    random = np.random.default_rng(6)
    logits = random.standard_normal((4, n_vocab), dtype=np.float32)
    many = np.flatnonzero(random.random(n_vocab) < 0.5)
    few = random.choice(n_vocab, 9, replace=False)
    allowed = {0: many.tolist(), 2: few.tolist(), 3: [n_vocab - 1]}
    wanted = [(40, 1), (3, 2), (40, 3), (1, 4)]
    for row, found in enumerate(find(device, programs, logits, wanted, allowed)):
        tokens = np.array(allowed.get(row, np.arange(n_vocab)))
        assert found is not None
        best = tokens[np.lexsort((tokens, -logits[row, tokens]))][: wanted[row][0]]
        assert found.ids == best.tolist()
        assert np.array_equal(found.logits, logits[row, best])
        assert found.picked == logits[row, wanted[row][1]]
        expected = np.log(np.exp(logits[row].astype(np.float64)).sum())
        assert found.log_sum_exp == pytest.approx(expected, rel=1e-6)


def test_a_mask_of_neighbours_overflows(device: Device, programs: Programs) -> None:
    """More allowed tokens than the list holds, in fewer segments than k: read the row."""
    logits = np.random.default_rng(7).standard_normal((1, 40_000), dtype=np.float32)
    assert find(device, programs, logits, [(40, 0)], {0: list(range(600))}) == [None]
    found = find(device, programs, logits, [(2, 0)], {0: list(range(600))})[0]
    assert found is not None
    assert found.ids == np.argsort(-logits[0, :600])[:2].tolist()


def test_nothing_is_allowed(device: Device, programs: Programs) -> None:
    found = find(device, programs, np.zeros((1, 3000), np.float32), [(40, 0)], {0: []})[0]
    assert found is not None
    assert found.ids == []


NEGATIVE_NAN = np.array([0xFFC00001], np.uint32).view(np.float32)[0]


@pytest.mark.parametrize("n_vocab", [128, 1001, 20_000])
@pytest.mark.parametrize("value", [np.nan, NEGATIVE_NAN, np.inf])
@pytest.mark.parametrize("place", [0, 77, -1])
def test_a_row_with_a_logit_that_is_no_number_is_broken(
    device: Device, programs: Programs, n_vocab: int, value: float, place: int
) -> None:
    """Its neighbours are not; nor does it matter whether the token is allowed."""
    logits = np.random.default_rng(9).standard_normal((4, n_vocab), dtype=np.float32)
    logits[[1, 2], place] = value
    logits[3, place] = -np.inf
    records = find_records(device, programs, logits, [(3, 0)] * 4, {2: [5, 6], 3: [7]})
    assert [is_broken(record) for record in records] == [False, True, True, False]
    assert_best(parse(records[0], 3), logits[0], 3, 0)


def test_a_row_without_a_possible_token_is_broken(device: Device, programs: Programs) -> None:
    logits = np.full((2, 3000), -np.inf, np.float32)
    logits[1, 2999] = -1e30
    records = find_records(device, programs, logits, [(1, 0)] * 2)
    assert [is_broken(record) for record in records] == [True, False]


def test_without_log_sum_exp(device: Device, programs: Programs) -> None:
    logits = np.random.default_rng(8).standard_normal((2, 3000), dtype=np.float32)
    buffers = topk_buffers(device, *logits.shape, 1)
    write(device, buffers.wanted, np.array([(5, 7, -1, 0), (5, 7, -1, 1)], np.int32), wait=True)
    x = upload(device, logits)
    run(device, programs, 2, lambda tape: topk(tape, x, buffers))
    without, with_it = (parse(record, 5) for record in read(buffers.found, None, device.queue))
    assert without is not None
    assert with_it is not None
    assert math.isnan(without.log_sum_exp)
    assert with_it.log_sum_exp > 0
    assert (without.ids, without.picked) == (np.argsort(-logits[0])[:5].tolist(), logits[0, 7])
