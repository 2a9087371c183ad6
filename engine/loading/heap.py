"""What glibc's heap takes of memory while a model is loaded, and afterwards.

glibc maps large blocks apart from its heap, but only those larger than any that has been freed, up
to 32 MiB. Loading frees such blocks, and buffers that a driver allocates later, a few MiB for each
layer's keys and values, would lie where something has been written before: resident at once, though
the tokens that they are for may never come.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
BUFFER_BYTES = 1 << 20  # blocks from here on are mapped apart while loading
# Afterwards; below it are what a step's logits and a client's texts take, which would else be
# mapped and filled with zeros each time.
BLOCK_BYTES = 8 << 20


@contextmanager
def sparse_heap() -> Iterator[None]:
    """Have buffers that are allocated meanwhile take memory when they are written, and give back
    what has been freed meanwhile. Does nothing with another allocator than glibc's."""
    system = ctypes.CDLL(None)
    if not hasattr(system, "mallopt") or not hasattr(system, "malloc_trim"):
        yield
        return
    system.mallopt(M_MMAP_THRESHOLD, BUFFER_BYTES)
    try:
        yield
    finally:
        system.mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES)
        system.mallopt(M_TRIM_THRESHOLD, 2 * BLOCK_BYTES)
        system.malloc_trim(0)
