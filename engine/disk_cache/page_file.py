"""The files of pages: whole, of this page and undamaged, or of no use.

A file is ``HEADER``, the ids of the page's tokens (int64), the data as it lies in memory, and the
CRC-32 of all that; all little-endian. ``kind`` says what the data is: K and V of the page in all
layers, those of a model that guesses, or what a slot keeps beside pages after its last token.

Whose page it is, header and ids say in full; the checksum is for damage alone. A CRC finds what
disks and crashes do (file systems have no more), and takes a fifth of the time of a hash.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

from gguf_serve.engine.disk_cache.names import KEY_BYTES, PageName, packed

MAGIC = b"GGUFKVPG"
VERSION = 1
CHECKSUM = struct.Struct("<I")
# magic, version, kind, number of ids, bytes of data, root, parent, key
HEADER = struct.Struct(f"<8sIIIQ{KEY_BYTES}s{KEY_BYTES}s{KEY_BYTES}s")


class Kind(Enum):
    """What a file holds of a page; the value is the end of its name."""

    KV = "kv"
    STATE = "state"
    DRAFT = "draft"

    @property
    def number(self) -> int:
        return list(Kind).index(self)


class DamagedError(Exception):
    """A file is not what its name says; the message says why."""


def file_name(name: PageName, kind: Kind) -> str:
    return f"{name.key.hex()}.{kind.value}"


def is_page_file(file: str) -> bool:
    """Whether a file has a name that ``file_name`` gives."""
    stem, _, end = file.partition(".")
    known = end in {kind.value for kind in Kind}
    return known and len(stem) == 2 * KEY_BYTES and set(stem) <= set("0123456789abcdef")


def file_bytes(n_ids: int, n_data: int) -> int:
    """The size of a file."""
    return HEADER.size + 8 * n_ids + n_data + CHECKSUM.size


def parts_of(name: PageName, kind: Kind, data: memoryview) -> Sequence[bytes | memoryview]:
    """What a file consists of, one behind the other."""
    head = _head(name, kind, data.nbytes)
    return head, data, CHECKSUM.pack(crc32(data, crc32(head)))


def read_page(path: Path, name: PageName, kind: Kind, n_data: int) -> memoryview:
    """The ``n_data`` bytes of a page. DamagedError unless the file is whole and this page's;
    OSError: it cannot be read."""
    with open_at_once(path) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError("it is no file")
        expected = file_bytes(len(name.ids), n_data)
        if status.st_size != expected:
            raise DamagedError(f"it has {status.st_size} bytes, not {expected}")
        raw = memoryview(file.read(expected))
    if raw.nbytes != expected:
        raise DamagedError("it is cut short")
    head = _head(name, kind, n_data)
    if raw[: len(head)] != head:
        raise DamagedError("it is not of this page, or of another version")
    if CHECKSUM.pack(crc32(raw[: -CHECKSUM.size])) != raw[-CHECKSUM.size :]:
        raise DamagedError("its checksum is not that of its content")
    return raw[len(head) : -CHECKSUM.size]


def _head(name: PageName, kind: Kind, n_data: int) -> bytes:
    header = HEADER.pack(
        MAGIC, VERSION, kind.number, len(name.ids), n_data, name.root, name.parent, name.key
    )
    return header + packed(name.ids)


def open_at_once(path: Path) -> BinaryIO:
    """Opening a pipe would wait for its writer."""
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
