"""Files of pages: what comes back is what was written, and nothing else is taken for one."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from gguf_serve.engine.disk_cache.names import PageName, beginning, chain, root_of
from gguf_serve.engine.disk_cache.page_file import (
    DamagedError,
    Kind,
    file_bytes,
    file_name,
    is_page_file,
    parts_of,
    read_page,
)

ROOT = root_of({"model": "abc"})
(NAME,) = chain(ROOT, beginning(ROOT), [1, -2, 1 << 40, 4], 4)
DATA = bytes(range(100))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / file_name(NAME, Kind.KV)
    path.write_bytes(b"".join(parts_of(NAME, Kind.KV, memoryview(DATA))))
    return path


def read(path: Path, name: PageName = NAME, kind: Kind = Kind.KV, n_data: int = 100) -> bytes:
    return bytes(read_page(path, name, kind, n_data))


def test_a_round_trip(path: Path) -> None:
    assert path.stat().st_size == file_bytes(4, 100)
    assert read(path) == DATA
    assert is_page_file(path.name)


def test_a_page_without_data(tmp_path: Path) -> None:
    """As of models whose layers keep nothing in pages."""
    path = tmp_path / "page"
    path.write_bytes(b"".join(parts_of(NAME, Kind.KV, memoryview(b""))))
    assert read(path, n_data=0) == b""


def test_a_file_that_is_cut_or_goes_on(path: Path) -> None:
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(DamagedError):
            read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedError):
        read(path)


def test_a_bit_that_has_changed_in_any_byte(path: Path) -> None:
    whole, generator = path.read_bytes(), random.Random(1)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedError):
            read(path)


def test_whole_sectors_that_are_another_files(path: Path) -> None:
    """As after a crash: zeros, or what was there before."""
    whole, generator = path.read_bytes(), random.Random(1)
    for _ in range(50):
        start = generator.randrange(len(whole))
        end = generator.randrange(start, len(whole)) + 1
        damaged = whole[:start] + generator.randbytes(end - start) + whole[end:]
        if damaged != whole:
            path.write_bytes(damaged)
            with pytest.raises(DamagedError):
                read(path)


@pytest.mark.parametrize("field", PageName.__struct_fields__)
def test_a_file_of_another_page(path: Path, field: str) -> None:
    """Though its checksum is right, as that of a file that was renamed."""
    other = (9, 9, 9, 9) if field == "ids" else bytes(32)
    with pytest.raises(DamagedError, match="not of this page"):
        read(path, replace(NAME, **{field: other}))


def test_a_file_of_another_kind(path: Path) -> None:
    with pytest.raises(DamagedError, match="not of this page"):
        read(path, kind=Kind.STATE)


def test_no_room_is_made_for_what_is_not_there(path: Path) -> None:
    with pytest.raises(DamagedError, match="it has 260 bytes, not"):
        read(path, n_data=1 << 60)


def test_nobody_waits_for_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedError, match="no file"):
        read(path)


@pytest.mark.parametrize(
    "name", ["lock", "a.kv", "0" * 64, "0" * 64 + ".part", "G" * 64 + ".kv", "0" * 64 + ".kv.bak"]
)
def test_names_of_other_files(name: str) -> None:
    assert not is_page_file(name)
