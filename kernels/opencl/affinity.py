"""Where the thread that launches kernels runs, beside the workers of a CPU's driver.

Intel's has each worker pinned to a processor, and leaves one for the thread that launches, which
has its share of every kernel. Who has slept may wake on a worker's processor instead; then each
kernel waits for two threads that take turns there, until the system moves one of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def apart_from_workers() -> Iterator[None]:
    """Have this thread run where the driver has no worker, if there is room; then anywhere. What
    it starts meanwhile would do the same."""
    free = processors_without_workers()
    if not free:
        yield
        return
    before = os.sched_getaffinity(0)
    with suppress(OSError):  # a container may have been given other processors
        os.sched_setaffinity(0, free)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)


@functools.cache
def processors_without_workers() -> frozenset[int]:
    """Those of this process to which no thread of it is pinned; empty if that is not to be known
    here. The driver must have been opened."""
    if not hasattr(os, "sched_setaffinity") or not os.path.isdir("/proc/self/task"):
        return frozenset()
    free = set(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):  # it has ended
            pinned = os.sched_getaffinity(int(thread))
            free -= pinned if len(pinned) == 1 else set()
    return frozenset(free)
