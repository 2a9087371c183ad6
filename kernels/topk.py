"""The likeliest tokens of each row of logits, found on the device (topk.cl)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.device import Device
from kernels.tape import OUTPUTS, Per, Tape
from kernels.tensor import Tensor, empty

SEGMENT = 256  # logits per work-item (topk.cl)
CAPACITY = 512  # logits that reach the threshold and still fit a row's list
MAX_K = 256
HEADER = 4


@dataclass(frozen=True, slots=True)
class TopKBuffers:
    """wanted: int32 [n, 4]: k, the token whose logit is asked for, the row of ``masks`` or -1,
    and nothing; masks: int32 [m, words], a bit per token; found: int32 records."""

    wanted: Tensor
    masks: Tensor
    found: Tensor
    maxima: Tensor
    tops: Tensor
    thresholds: Tensor


def topk_buffers(device: Device, n_rows: int, n_vocab: int, n_masks: int) -> TopKBuffers:
    n_segments = -(-n_vocab // SEGMENT)
    return TopKBuffers(
        wanted=empty(device, (n_rows, 4), np.int32),
        masks=empty(device, (n_masks, n_segments * SEGMENT // 32), np.int32),
        found=empty(device, (n_rows, HEADER + 2 * CAPACITY), np.int32),
        maxima=empty(device, (n_rows, n_segments, 2)),
        tops=empty(device, (n_rows, n_segments)),
        thresholds=empty(device, (n_rows,), np.int32),
    )


def softcap(tape: Tape, logits: Tensor, cap: float) -> None:
    """logits = cap * tanh(logits / cap)."""
    n_vocab = logits.shape[1]
    args = [logits.buffer, np.int32(n_vocab), np.float32(cap)]
    tape.add(
        "topk.cl", "softcap", [f"CAPACITY={CAPACITY}"], args, (-(-n_vocab // 16), Per(OUTPUTS))
    )


def topk(tape: Tape, logits: Tensor, buffers: TopKBuffers) -> None:
    """Fill ``buffers.found`` from logits, float32 [n, n_vocab], and ``buffers.wanted``."""
    n_vocab = np.int32(logits.shape[1])
    n_segments = -(-int(n_vocab) // SEGMENT)
    defines = [f"CAPACITY={CAPACITY}"]
    grid = (n_segments, Per(OUTPUTS))
    x, maxima, tops = logits.buffer, buffers.maxima.buffer, buffers.tops.buffer
    wanted, masks, found = buffers.wanted.buffer, buffers.masks.buffer, buffers.found.buffer
    thresholds = buffers.thresholds.buffer
    tape.add("topk.cl", "segments", defines, [x, n_vocab, wanted, masks, maxima, tops], grid)
    args = [maxima, tops, np.int32(n_segments), n_vocab, wanted, x, found, thresholds]
    tape.add("topk.cl", "select_threshold", defines, args, (Per(OUTPUTS),))
    args = [x, n_vocab, wanted, masks, tops, thresholds, found]
    tape.add("topk.cl", "collect", defines, args, grid)


@dataclass(frozen=True, slots=True)
class Found:
    """A row's likeliest tokens, best first (ties: lower id first), as the row's raw logits."""

    ids: list[int]
    logits: list[float]
    log_sum_exp: float
    picked: float  # the logit of the token that was asked for


def parse(record: npt.NDArray[Any], k: int) -> Found | None:
    """The k best of a row of ``TopKBuffers.found``; None if too many tie: read the row.

    Fewer than k where a mask allows no more.
    """
    count, _, _, masked = record[:HEADER].tolist()
    if count > CAPACITY or (count < k and not masked):
        return None
    floats = record.view(np.float32)
    ids = record[HEADER : HEADER + 2 * count : 2]
    logits = floats[HEADER + 1 : HEADER + 2 * count : 2]
    order = np.lexsort((ids, -logits))[:k]
    _, log_sum_exp, picked, _ = floats[:HEADER].tolist()
    return Found(ids[order].tolist(), logits[order].tolist(), log_sum_exp, picked)
