"""Files of slots: what comes back is what was written, and nothing else is taken for one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.forward.slot_file import SlotContent, read_slot_file, write_slot_file

MADE_WITH = {"model": "abc", "cache types": ["f16", "f32"]}
PAGE_BYTES = 10
EMPTY = SlotContent([], [], np.empty(0, np.uint8))
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "slot"
    pages = [np.arange(i, i + PAGE_BYTES, dtype=np.uint8) for i in range(2)]
    content = SlotContent([5, -1, 1 << 40], pages, np.full(7, 9, np.uint8))
    assert write_slot_file(path, MADE_WITH, content) == path.stat().st_size
    return path


def test_a_round_trip(path: Path) -> None:
    content, n_bytes = read_slot_file(path, MADE_WITH, PAGE_BYTES)
    assert n_bytes == path.stat().st_size
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
    "header",
    [
        b"[]", b"{", b'{"n_tokens": -1, "n_pages": 0, "state_bytes": 0}', b"{}", b"\xff",
        b"[" * 100_000, b'{"made_with":' * 100_000,
    ],
)  # fmt: skip
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


def test_a_bit_that_has_changed_anywhere(path: Path) -> None:
    whole = path.read_bytes()
    for at in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(RequestError, match="slot"):
            read_slot_file(path, MADE_WITH, PAGE_BYTES)


def test_what_follows_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(RequestError, match="slot is damaged: its checksum"):
        read_slot_file(path, MADE_WITH, PAGE_BYTES)


def test_a_file_without_a_checksum(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"version": 3', b'"version": 1'))
    with pytest.raises(RequestError, match=r"slot has no checksum \(version 1\): save the slot"):
        read_slot_file(path, MADE_WITH, PAGE_BYTES)


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RequestError, match="slot is not a file of a slot"):
        read_slot_file(path, MADE_WITH, PAGE_BYTES)


@pytest.mark.parametrize("name", ["é" * 200, "x" * 256])
def test_a_name_that_is_too_long(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=f"cannot write {name}: File name too long"):
        write_slot_file(tmp_path / name, MADE_WITH, EMPTY)
    with pytest.raises(RequestError, match=f"cannot read {name}: File name too long"):
        read_slot_file(tmp_path / name, MADE_WITH, PAGE_BYTES)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from gguf_serve.engine.forward.slot_file import SlotContent, write_slot_file
class Pages(list):
    def __iter__(self):
        print("half", flush=True)
        input()
        return iter(())
write_slot_file(Path(sys.argv[1]), {}, SlotContent([1], Pages(), np.empty(0, np.uint8)))
"""


def test_what_a_killed_writer_leaves_goes_with_the_next_file(tmp_path: Path) -> None:
    """Not while it writes."""
    path, end = tmp_path / "slot", tmp_path / "end"
    command = [sys.executable, "-c", KILLED, str(path)]
    writer = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "half\n"
    write_slot_file(end, MADE_WITH, EMPTY)
    (left,) = tmp_path.glob(".*")
    writer.kill()
    writer.communicate()
    assert left.exists()
    write_slot_file(end, MADE_WITH, EMPTY)
    assert list(tmp_path.iterdir()) == [end]


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot read none"):
        read_slot_file(tmp_path / "none", MADE_WITH, PAGE_BYTES)
    with pytest.raises(RequestError, match="cannot write file"):
        write_slot_file(tmp_path / "no" / "file", MADE_WITH, EMPTY)
