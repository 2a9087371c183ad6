"""Host memory: how much there is, and buffers of CPU devices on huge pages.

A CPU reads its weights and KV pages from main memory at every token. On pages of 4 KiB the
processor's prefetchers stop at each page's end and half of the bandwidth is lost to address
translation; on pages of 2 MiB a matrix is read at the memory's own speed. OpenCL drivers
allocate on small pages, so buffers are cut from memory of our own (``USE_HOST_PTR``, which
CPU drivers use in place). But what is filled little by little stays on small pages: the first byte
of a huge one takes all of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

HUGE_PAGE = 2 << 20
CHUNK_BYTES = 32 << 20  # asked of the system at a time; larger buffers get their own
SMALL_BYTES = 64 << 10  # buffers that lie together, apart from larger ones
ALIGNMENT = 4096  # of every buffer: what drivers want for use in place


class HugePages:
    """Cuts buffers from chunks of memory; a chunk lives as long as a buffer in it.

    Pages are committed when first written, so what is never used costs nothing. To write the
    weights of a norm must not commit those of the matrices beside it, a third of a millisecond or
    (where a host has to find the memory first) five each: packing does, on every core.
    """

    def __init__(self) -> None:
        self._large, self._small, self._gradual = _Chunk(), _Chunk(), _Chunk(is_huge=False)

    def take(self, n_bytes: int, *, gradual: bool = False) -> npt.NDArray[np.uint8]:
        """Zeroed memory, uint8 [n_bytes rounded up to ALIGNMENT]. Raises MemoryError.

        ``gradual``: it is filled little by little, and has pages of the system's usual size.
        """
        size = -(-n_bytes // ALIGNMENT) * ALIGNMENT
        if size > CHUNK_BYTES // 2:
            return _map(size, is_huge=not gradual)[:size]
        if gradual:
            return self._gradual.take(size)
        return (self._small if size <= SMALL_BYTES else self._large).take(size)


class _Chunk:
    """What is left of the memory that was last asked for."""

    def __init__(self, *, is_huge: bool = True) -> None:
        self._left: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._is_huge = is_huge

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        if size > len(self._left):
            self._left = _map(CHUNK_BYTES, is_huge=self._is_huge)
        taken, self._left = self._left[:size], self._left[size:]
        return taken


def _map(n_bytes: int, *, is_huge: bool) -> npt.NDArray[np.uint8]:
    """Anonymous memory that begins where a huge page may; on huge pages, or on none even if the
    system gives them unasked."""
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
            mapping.madvise(mmap.MADV_HUGEPAGE if is_huge else mmap.MADV_NOHUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    return np.frombuffer(mapping, np.uint8, n_bytes, -address % HUGE_PAGE)


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes of host memory that can be had now, or None if the system does not tell.

    What a control group leaves is less, where there is one; files that are cached count as
    available (https://docs.kernel.org/admin-guide/cgroup-v2.html#memory).
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        available = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None
    return min([available, *_group_memory(root)])


def _group_memory(root: Path) -> Iterator[int]:
    """What each control group of this process has left, up to the one of the whole system."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / "sys/fs/cgroup" / controllers
        names = ("memory.max", "memory.current") if not controllers else (
            "memory.limit_in_bytes", "memory.usage_in_bytes"
        )  # fmt: skip
        inner = base / path.strip("/")
        for group in (inner, *inner.parents):
            if not group.is_relative_to(base):
                break
            with contextlib.suppress(OSError, ValueError):
                limit, used = (int((group / name).read_text(encoding="ascii")) for name in names)
                yield max(limit - used + _cached(group), 0)


def _cached(group: Path) -> int:
    """Bytes of files in memory that can be dropped."""
    with contextlib.suppress(OSError):
        for line in (group / "memory.stat").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name in ("total_inactive_file", "inactive_file"):
                return int(value)
    return 0
