"""Files of slots: what comes back is what was written, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine.errors import RequestError
from engine.slot_file import SlotContent, read_slot_file, write_slot_file

MADE_WITH = {"model": "abc", "cache types": ["f16", "f32"]}
PAGE_BYTES = 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "slot"
    pages = [np.arange(i, i + PAGE_BYTES, dtype=np.uint8) for i in range(2)]
    content = SlotContent([5, -1, 1 << 40], pages, np.full(7, 9, np.uint8))
    assert write_slot_file(path, MADE_WITH, content) == path.stat().st_size
    return path


def test_a_round_trip(path: Path) -> None:
    content = read_slot_file(path, MADE_WITH, PAGE_BYTES)
    assert list(content.tokens) == [5, -1, 1 << 40]
    assert [page.tolist()[0] for page in content.pages] == [0, 1]
    assert content.state.tolist() == [9] * 7
    assert [file.name for file in path.parent.iterdir()] == ["slot"]


def test_what_it_was_made_with_must_agree(path: Path) -> None:
    with pytest.raises(RequestError, match="made with model 'abc', here it is 'xyz'"):
        read_slot_file(path, MADE_WITH | {"model": "xyz"}, PAGE_BYTES)


def test_a_file_that_is_cut_anywhere(path: Path) -> None:
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(RequestError):
            read_slot_file(path, MADE_WITH, PAGE_BYTES)


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b'{"n_tokens": -1, "n_pages": 0, "state_bytes": 0}', b"{}"]
)
def test_damaged_headers(path: Path, header: bytes) -> None:
    path.write_bytes(b"GGUFSLOT" + len(header).to_bytes(4, "little") + header)
    with pytest.raises(RequestError, match="damaged"):
        read_slot_file(path, MADE_WITH, PAGE_BYTES)


@pytest.mark.parametrize("key", ["n_tokens", "n_pages", "state_bytes"])
@pytest.mark.parametrize("number", [2**40, 10**30])
def test_no_room_is_made_for_what_is_not_there(path: Path, key: str, number: int) -> None:
    raw = path.read_bytes()
    size = int.from_bytes(raw[8:12], "little")
    header = json.dumps(json.loads(raw[12 : 12 + size]) | {key: number}).encode()
    path.write_bytes(raw[:8] + len(header).to_bytes(4, "little") + header + raw[12 + size :])
    with pytest.raises(RequestError, match="slot is cut short"):
        read_slot_file(path, MADE_WITH, PAGE_BYTES)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot read none"):
        read_slot_file(tmp_path / "none", MADE_WITH, PAGE_BYTES)
    empty = SlotContent([], [], np.empty(0, np.uint8))
    with pytest.raises(RequestError, match="cannot write file"):
        write_slot_file(tmp_path / "no" / "file", MADE_WITH, empty)
