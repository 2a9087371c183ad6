"""Where glibc puts blocks while a model is loaded, and what it keeps."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from gguf_serve.engine.loading.heap import BLOCK_BYTES, BUFFER_BYTES, sparse_heap

SYSTEM = ctypes.CDLL(None)
SYSTEM.malloc.restype = ctypes.c_void_p
IS_MMAPPED = 2  # in the word before a block

pytestmark = pytest.mark.skipif(not hasattr(SYSTEM, "malloc_trim"), reason="glibc's")


def allocate(size: int) -> int:
    block: int = SYSTEM.malloc(ctypes.c_size_t(size))
    return block


def free(block: int) -> None:
    SYSTEM.free(ctypes.c_void_p(block))


def lies_apart(size: int) -> bool:
    block = allocate(size)
    word = ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value
    free(block)
    return bool(word & IS_MMAPPED)


def test_buffers_lie_apart_whatever_has_been_freed() -> None:
    free(allocate(4 * BLOCK_BYTES))
    with sparse_heap():
        free(allocate(4 * BLOCK_BYTES))
        assert lies_apart(2 * BUFFER_BYTES)
        assert not lies_apart(BUFFER_BYTES // 2)
    assert not lies_apart(BLOCK_BYTES // 2)
    assert lies_apart(2 * BLOCK_BYTES)


def test_what_has_been_freed_is_given_back() -> None:
    """Also what lies below a block that is in use."""
    with sparse_heap():
        blocks = [allocate(1000) for _ in range(30_000)]
        for block in blocks:
            ctypes.memset(block, 1, 1000)
        for block in blocks[:-1]:
            free(block)
        before = resident()
    assert before - resident() > 20_000_000
    free(blocks[-1])


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
