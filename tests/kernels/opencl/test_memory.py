"""Memory that buffers of CPU devices are cut from."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from gguf_serve.kernels.opencl.memory import ALIGNMENT, CHUNK_BYTES, HugePages, available_memory


def test_pieces_are_aligned_zeroed_and_apart() -> None:
    pages = HugePages()
    pieces = [pages.take(n) for n in (1, ALIGNMENT, ALIGNMENT + 1, CHUNK_BYTES)]
    pieces.append(pages.take(5, gradual=True))
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


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"}
GROUP = "sys/fs/cgroup/"


@pytest.mark.parametrize(
    ("contents", "n_bytes"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 9000 kB\n"}, None),
        (MEMINFO, 8000 << 10),
        (MEMINFO | {"proc/self/cgroup": "0::/a/b\n", f"{GROUP}a/b/memory.max": "max\n",
                    f"{GROUP}a/memory.max": "5000\n", f"{GROUP}a/memory.current": "3000\n",
                    f"{GROUP}a/memory.stat": "anon 7\ninactive_file 100\n"}, 2100),
        (MEMINFO | {"proc/self/cgroup": "9:cpu:/\n4:memory:/x\n",
                    f"{GROUP}memory/x/memory.limit_in_bytes": "9000\n",
                    f"{GROUP}memory/x/memory.usage_in_bytes": "10000\n"}, 0),
    ],
)  # fmt: skip
def test_memory_that_is_left(tmp_path: Path, contents: dict[str, str], n_bytes: int | None) -> None:
    assert available_memory(files(tmp_path, contents)) == n_bytes
