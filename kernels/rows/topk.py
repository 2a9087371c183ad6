"""The likeliest tokens of each row of logits, found on the device (topk.cl)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.signature import Arguments
from gguf_serve.kernels.opencl.tape import OUTPUTS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, empty
from gguf_serve.kernels.rows.norm import SIMT_GROUP

SEGMENT = 256  # logits that are left out together (topk.cl)
SEGMENTS_EACH = 16  # of a work-item on a CPU
CAPACITY = 512  # logits that reach the threshold and still fit a row's list
MAX_K = 256
HEADER = 4
KERNELS = ("SEGMENTS", "SELECT", "COLLECT")
MASKED, SORTED, BROKEN = 1, 2, 4  # flags of a record


class TopKBuffers(Struct, frozen=True):
    """wanted: int32 [n, 4]: k, the token whose logit is asked for, the row of ``masks`` or -1,
    and whether the log-sum-exp is asked for; masks: int32 [m, words], a bit per token; found:
    int32 records."""

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


def topk(tape: Tape, logits: Tensor, buffers: TopKBuffers) -> None:
    """Fill ``buffers.found`` from logits, float32 [n, n_vocab], and ``buffers.wanted``."""
    n_segments = -(-logits.shape[1] // SEGMENT)
    each, group = _shares(tape.device)
    segments, selects, collects = _programs(tape.device)
    args: Arguments = {
        "logits": logits, "n_vocab": logits.shape[1], "wanted": buffers.wanted,
        "masks": buffers.masks, "tops": buffers.tops,
    }  # fmt: skip
    maxima = {"maxima": buffers.maxima}
    chosen = {"found": buffers.found, "thresholds": buffers.thresholds}
    grid = (-(-n_segments // each), Per(OUTPUTS))
    tape.add("rows/topk.cl", "segments", segments, {**args, **maxima}, grid)
    rows = Per(OUTPUTS, 1, group)
    select = {**args, **maxima, **chosen, "n_segments": n_segments}
    tape.add("rows/topk.cl", "select_threshold", selects, select, (rows,), (group,))
    if tape.device.is_simd:  # a work-item has collected a row's best
        return
    grid = (n_segments, Per(OUTPUTS))
    tape.add("rows/topk.cl", "collect", collects, {**args, **chosen}, grid)


def _shares(device: Device) -> tuple[int, int]:
    """Segments of a work-item, and work-items that look for a row's threshold."""
    return (SEGMENTS_EACH, 1) if device.is_simd else (1, SIMT_GROUP)


def _programs(device: Device) -> list[list[str]]:
    """The defines of the programs for the three kernels: on CPUs it is one program, since another
    takes a start longer than these take to compile."""
    each, group = _shares(device)
    sizes = [f"CAPACITY={CAPACITY}", f"EACH={each}", f"WG={group}"]
    if device.is_simd:
        return [[*sizes, *KERNELS]] * len(KERNELS)
    return [[*sizes, kernel] for kernel in KERNELS]


class Found(Struct, frozen=True):
    """A row's likeliest tokens, best first (ties: lower id first), as the row's raw logits."""

    ids: list[int]
    logits: list[float]
    log_sum_exp: float  # NaN if it was not asked for
    picked: float  # the logit of the token that was asked for


def is_broken(record: npt.NDArray[Any]) -> bool:
    """Whether a logit of the row is NaN, the largest is infinite, or all of them are -infinity."""
    return bool(record[HEADER - 1] & BROKEN)


def parse(record: npt.NDArray[Any], k: int) -> Found | None:
    """The k best of a row of ``TopKBuffers.found``; None if too many tie: read the row.

    Fewer than k where a mask allows no more.
    """
    count, flags = record[:HEADER:3].tolist()
    if count > CAPACITY or (count < k and not flags & MASKED):
        return None
    if flags & SORTED:
        count = min(count, k)
    floats = record.view(np.float32)
    ids = record[HEADER : HEADER + 2 * count : 2]
    logits = floats[HEADER + 1 : HEADER + 2 * count : 2]
    if not flags & SORTED:
        order = np.lexsort((ids, -logits))[:k]
        ids, logits = ids[order], logits[order]
    _, log_sum_exp, picked, _ = floats[:HEADER].tolist()
    return Found(ids.tolist(), logits.tolist(), log_sum_exp, picked)
