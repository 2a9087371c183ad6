"""The states that a target has had of a sequence's tokens, for as long as a head may read them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class KnownStates:
    """Of consecutive tokens of the sequence ``id``. Where one is not known, as at the beginning of
    a text or where a prefix was found in the cache, it is taken to be zeros: a guess may be worse
    for that, and no text another."""

    def __init__(self, id: int, width: int) -> None:
        self.id = id
        self._start = 0  # position of the first
        self._rows = np.zeros((0, width), np.float32)

    @property
    def end(self) -> int:
        """The position after the last one."""
        return self._start + len(self._rows)

    def note(self, start: int, rows: Floats) -> None:
        """Those of the tokens from position ``start`` on; what was known of these and of later ones
        holds no more."""
        if not self._start <= start <= self.end:
            self._start, self._rows = start, rows.copy()
        else:
            self._rows = np.concatenate([self._rows[: start - self._start], rows])

    def of(self, start: int, end: int) -> Floats:
        """float32 [end - start, width]; the first position may be -1."""
        found = np.zeros((end - start, self._rows.shape[1]), np.float32)
        first, last = max(start, self._start), min(end, self.end)
        if first < last:
            found[first - start : last - start] = self._rows[
                first - self._start : last - self._start
            ]
        return found

    def forget_before(self, position: int) -> None:
        n = min(max(position - self._start, 0), len(self._rows))
        self._start, self._rows = self._start + n, self._rows[n:].copy()
