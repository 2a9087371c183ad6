"""Host memory for the buffers of CPU devices, on huge pages.

A CPU reads its weights and KV pages from main memory at every token. On pages of 4 KiB the
processor's prefetchers stop at each page's end and half of the bandwidth is lost to address
translation; on pages of 2 MiB a matrix is read at the memory's own speed. OpenCL drivers
allocate on small pages, so buffers are cut from memory of our own (``USE_HOST_PTR``, which
CPU drivers use in place).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap

import numpy as np
import numpy.typing as npt

HUGE_PAGE = 2 << 20
CHUNK_BYTES = 32 << 20  # asked of the system at a time; larger buffers get their own
ALIGNMENT = 4096  # of every buffer: what drivers want for use in place


class HugePages:
    """Cuts buffers from chunks of memory; a chunk lives as long as a buffer in it.

    Pages are committed when first written, so what is never used costs nothing.
    """

    def __init__(self) -> None:
        self._chunk: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._used = 0

    def take(self, n_bytes: int) -> npt.NDArray[np.uint8]:
        """Zeroed memory, uint8 [n_bytes rounded up to ALIGNMENT]. Raises MemoryError."""
        size = -(-n_bytes // ALIGNMENT) * ALIGNMENT
        if self._used + size > len(self._chunk):
            if size > CHUNK_BYTES // 2:
                return _map(size)[:size]
            self._chunk, self._used = _map(CHUNK_BYTES), 0
        taken = self._chunk[self._used : self._used + size]
        self._used += size
        return taken


def _map(n_bytes: int) -> npt.NDArray[np.uint8]:
    """Anonymous memory that begins at a huge page; plain pages where there are none."""
    try:
        if hasattr(mmap, "MAP_PRIVATE"):  # shared memory, the default, gets no huge pages
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            mapping = mmap.mmap(-1, n_bytes + HUGE_PAGE, flags=flags)
        else:
            mapping = mmap.mmap(-1, n_bytes + HUGE_PAGE)
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(str(error)) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    return np.frombuffer(mapping, np.uint8, n_bytes, -address % HUGE_PAGE)
