"""How fast loading is, so that nothing is loaded that is computed sooner."""

from __future__ import annotations

HOPE = 1.1  # what is not tried any more seems so much faster each time


class Rate:
    """Bytes per second, from how long the last loads have taken."""

    def __init__(self) -> None:
        self._bytes_per_second = 0.0  # not known yet

    def note(self, n_bytes: int, seconds: float) -> None:
        if n_bytes and seconds > 0.0:
            measured, known = n_bytes / seconds, self._bytes_per_second
            self._bytes_per_second = (measured + known) / 2 if known else measured

    def is_worth(self, n_bytes: int, n_tokens: int, tokens_per_second: float) -> bool:
        """Whether to load so many bytes is faster than to compute so many tokens; what is not
        known yet is to be found out."""
        if not self._bytes_per_second or not tokens_per_second:
            return True
        if n_bytes / self._bytes_per_second <= n_tokens / tokens_per_second:
            return True
        self._bytes_per_second *= HOPE
        return False
