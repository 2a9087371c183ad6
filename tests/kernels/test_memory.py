"""Memory that buffers of CPU devices are cut from."""

from __future__ import annotations

import gc
import weakref

import pytest

from kernels.memory import ALIGNMENT, CHUNK_BYTES, HugePages


def test_pieces_are_aligned_zeroed_and_apart() -> None:
    pages = HugePages()
    pieces = [pages.take(n) for n in (1, ALIGNMENT, ALIGNMENT + 1, CHUNK_BYTES, 5)]
    for i, piece in enumerate(pieces):
        assert piece.ctypes.data % ALIGNMENT == 0
        assert not piece.any()
        piece[:] = i + 1
    assert [len(p) // ALIGNMENT for p in pieces] == [1, 1, 2, CHUNK_BYTES // ALIGNMENT, 1]
    assert all((piece == i + 1).all() for i, piece in enumerate(pieces))


def test_small_pieces_share_a_chunk() -> None:
    pages = HugePages()
    first, second = pages.take(100), pages.take(100)
    assert second.ctypes.data - first.ctypes.data == ALIGNMENT


def test_a_chunk_goes_with_its_last_piece() -> None:
    pages = HugePages()
    piece = pages.take(CHUNK_BYTES)
    mapping = piece.base
    while getattr(mapping, "base", None) is not None:
        mapping = mapping.base
    gone = weakref.ref(mapping) if mapping is not None else None
    del piece, mapping
    gc.collect()
    assert gone is None or gone() is None


def test_absurd_size_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        HugePages().take(1 << 60)
