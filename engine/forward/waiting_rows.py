"""Rows of logits whose masks took longer than their step: their sequences sit out until then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gguf_serve.engine.forward.batch import OutputRow, TokenMask
from gguf_serve.engine.forward.runner import RowLogits
from gguf_serve.engine.scheduling.sequence import Sequence

LOOK_SECONDS = 0.5  # until the loop looks around, though nothing has woken it


class _Waiting(NamedTuple):
    row: OutputRow
    logits: RowLogits
    mask: TokenMask


class WaitingRows:
    """Belongs to the engine's thread, which ``wake`` wakes."""

    def __init__(self, wake: threading.Condition) -> None:
        self._wake = wake
        self._rows: list[_Waiting] = []

    def add(self, row: OutputRow, logits: RowLogits) -> None:
        assert row.mask is not None
        self._rows.append(_Waiting(row, logits, row.mask))
        row.mask.begin(self._notify)

    def take(self) -> list[tuple[OutputRow, RowLogits]]:
        """The rows whose masks have come. Those of sequences that have ended or were paused
        meanwhile are dropped: they are computed anew, if they are wanted at all."""
        if not self._rows:
            return []
        ready = [waiting for waiting in self._rows if waiting.mask.is_ready]
        self._rows = [waiting for waiting in self._rows if not waiting.mask.is_ready]
        return [
            (row, _masked(logits, mask)) for row, logits, mask in ready if _is_next(row.chunk.seq)
        ]

    def wait(self, is_enough: Callable[[], bool], also: bool = False) -> None:
        """Wait for a mask, if any is missing, as there is nothing else to do; ``also``: even if
        none is."""
        with self._wake:
            if self._rows or also:
                self._wake.wait_for(lambda: self._has_ready or is_enough(), LOOK_SECONDS)

    @property
    def _has_ready(self) -> bool:
        return any(waiting.mask.is_ready for waiting in self._rows)

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()


def _is_next(seq: Sequence) -> bool:
    return seq.state == "running" and not seq.n_pending


def _masked(logits: RowLogits, mask: TokenMask) -> RowLogits:
    words = np.zeros(-(-len(logits.row()) // 32), np.int32)
    mask.fill(words)
    return logits.masked(words)
