"""Where glibc puts blocks while a model is loaded, and what it keeps; in a process with a heap that
nobody has used before."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

SOURCE = """
import ctypes, os
from pathlib import Path
from gguf_serve.engine.loading.heap import BLOCK_BYTES, BUFFER_BYTES, sparse_heap

IS_MMAPPED = 2  # in the word before a block
system = ctypes.CDLL(None)
system.malloc.argtypes, system.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
system.free.argtypes, system.free.restype = [ctypes.c_void_p], None

def lies_apart(size):
    block = system.malloc(size)
    word = ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value
    system.free(block)
    return bool(word & IS_MMAPPED)

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
"""
BLOCKS = """
system.free(system.malloc(3 * BLOCK_BYTES))
assert not lies_apart(2 * BUFFER_BYTES)
with sparse_heap():
    system.free(system.malloc(3 * BLOCK_BYTES))
    assert lies_apart(4 * BUFFER_BYTES)  # which the heap has no room for
    assert not lies_apart(BUFFER_BYTES // 2)
assert not lies_apart(BLOCK_BYTES // 2)
assert lies_apart(2 * BLOCK_BYTES)
"""
FREED = """
with sparse_heap():
    blocks = [system.malloc(1000) for _ in range(30_000)]
    for block in blocks:
        ctypes.memset(block, 1, 1000)
    for block in blocks[:-1]:  # the last one keeps the heap from shrinking
        system.free(block)
    before = resident()
assert before - resident() > 20_000_000
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's")
@pytest.mark.parametrize("code", [BLOCKS, FREED], ids=["buffers lie apart", "what is freed"])
def test_the_heap(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SOURCE + code], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
