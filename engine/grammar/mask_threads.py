"""Threads that compute masks, so that the engine's does not wait for a grammar that takes long.

An ordinary mask takes 20 to 200 µs, one of an ambiguous grammar up to half a second. Grammars
that have shown to be slow share one thread: they wait for each other, and nobody for them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

SLOW_SECONDS = 0.01  # of the processor, for a mask
FAST_THREADS = 2


class MaskThreads:
    """Runs what computes a mask; may be asked from any thread."""

    def __init__(self) -> None:
        self._fast = ThreadPoolExecutor(FAST_THREADS, "mask")
        self._slow = ThreadPoolExecutor(1, "slow mask")

    def run(self, compute: Callable[[], None], is_slow: bool) -> Future[None]:
        return (self._slow if is_slow else self._fast).submit(compute)
