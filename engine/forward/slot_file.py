"""Files of what a slot has left in the cache: its tokens, their KV pages, a state.

A file is ``MAGIC``, the length of the header (uint32), the header (JSON), the token ids (int64),
then for each page its bytes, then the state's, then those of a model that guesses for each page, if
there is one, then the CRC-32 of all that; all little-endian. The header says what the file was made
with; it can be used only where all of that is the same. Of another model that guesses it is used
without what that has. The checksum finds damage, not malice: who can write to the folder can write
a checksum too.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import struct
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gguf_serve.engine.disk_cache.page_file import open_at_once
from gguf_serve.engine.errors import RequestError

try:
    import fcntl
except ImportError:  # nothing is locked there, and so nothing swept
    fcntl = None  # type: ignore[assignment]

MAGIC = b"GGUFSLOT"
VERSION = 3  # 2 had no model that guesses
WITHOUT_CHECKSUM = 1  # its bytes would be believed as they are, for every client
MOST_HEADER = 1 << 20  # bytes
CHECKSUM = struct.Struct("<I")

Bytes = npt.NDArray[np.uint8]


class SlotContent(Struct, frozen=True):
    """``tokens`` and the pages that hold their KV; ``state``: what a slot keeps beside pages
    after all of them; ``drafts``: of the same pages, what a model that guesses has."""

    tokens: Sequence[int]
    pages: Sequence[Bytes]
    state: Bytes
    drafts: Sequence[Bytes] = ()


class DraftFormat(Struct, frozen=True):
    """Of what a model that guesses has of a page: what it was made with, and bytes."""

    made_with: Mapping[str, Any]
    page_bytes: int


class _Checked:
    """A file with the checksum of what has been read from it or written to it."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self.name = file, name
        self._crc = self.n_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self.n_bytes += self._file.write(data)

    def write_checksum(self) -> None:
        self.write(CHECKSUM.pack(self._crc))

    def take(self, size: int) -> bytes:
        """So many bytes; RequestError if there are not as many, before room is made for them."""
        if size > os.fstat(self._file.fileno()).st_size - self.n_bytes:
            raise RequestError(f"{self.name} is cut short")
        data = self._file.read(size)
        self._crc = zlib.crc32(data, self._crc)
        self.n_bytes += size
        return data

    def check(self) -> None:
        """RequestError unless the checksum of all that was taken comes next, and then the end."""
        expected = CHECKSUM.pack(self._crc)
        if self.take(CHECKSUM.size) != expected or self._file.read(1):
            raise RequestError(f"{self.name} is damaged: its checksum is not that of its content")


def write_slot_file(
    path: Path,
    made_with: Mapping[str, Any],
    content: SlotContent,
    draft: DraftFormat | None = None,
) -> int:
    """Write a file, whole or not at all; returns its bytes. RequestError: it cannot be.

    What a writer that was killed has left in the folder goes with the next one's.
    """
    header = json.dumps({
        "version": VERSION, "made_with": dict(made_with), "n_tokens": len(content.tokens),
        "n_pages": len(content.pages), "state_bytes": content.state.nbytes,
        "draft": None if draft is None else dict(draft.made_with),
        "draft_bytes": 0 if draft is None else draft.page_bytes,
    }).encode()  # fmt: skip
    _sweep(path.parent)
    unfinished = path.with_name(f".slot-{secrets.token_hex(8)}.part")
    try:
        with unfinished.open("xb") as raw:
            if fcntl is not None:
                fcntl.flock(raw, fcntl.LOCK_EX)
            file = _Checked(raw, path.name)
            file.write(MAGIC + struct.pack("<I", len(header)) + header)
            file.write(np.asarray(content.tokens, "<i8").tobytes())
            for page in (*content.pages, content.state, *content.drafts):
                file.write(page.data)
            file.write_checksum()
            raw.flush()
            unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise RequestError(f"cannot write {path.name}: {error.strerror}") from error
    return file.n_bytes


def read_slot_file(
    path: Path, made_with: Mapping[str, Any], page_bytes: int, draft: DraftFormat | None = None
) -> tuple[SlotContent, int]:
    """The content of a file and its bytes. RequestError for one that cannot be read, is none, is
    damaged, or was made with something else."""
    try:
        with open_at_once(path) as raw:
            if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
                raise RequestError(f"{path.name} is not a file of a slot")
            file = _Checked(raw, path.name)
            header = _read_header(file)
            _check(header, made_with, path.name)
            tokens = np.frombuffer(file.take(8 * header["n_tokens"]), "<i8")
            pages = [_bytes(file, page_bytes) for _ in range(header["n_pages"])]
            state = _bytes(file, header["state_bytes"])
            drafts = _drafts(file, header, draft)
            file.check()
            return SlotContent(tokens.tolist(), pages, state, drafts), file.n_bytes
    except OSError as error:
        raise RequestError(f"cannot read {path.name}: {error.strerror}") from error


def _sweep(folder: Path) -> None:
    """Remove unfinished files whose writers are gone: those that live hold a lock."""
    for left in folder.glob(".slot-*.part") if fcntl is not None else ():
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _read_header(file: _Checked) -> dict[str, Any]:
    try:
        start = file.take(len(MAGIC) + 4)
    except RequestError:
        start = b""
    if not start.startswith(MAGIC):
        raise RequestError(f"{file.name} is not a file of a slot")
    (size,) = struct.unpack("<I", start[len(MAGIC) :])
    try:
        header = {"draft_bytes": 0, **json.loads(file.take(min(size, MOST_HEADER)))}
        numbers = [header[key] for key in ("n_tokens", "n_pages", "state_bytes", "draft_bytes")]
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(numbers)
        return header
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError(f"{file.name} has a damaged header") from error


def _check(header: Mapping[str, Any], made_with: Mapping[str, Any], name: str) -> None:
    version = header.get("version")
    if version == WITHOUT_CHECKSUM:
        raise RequestError(f"{name} has no checksum (version 1): save the slot again")
    if version not in (VERSION, VERSION - 1):
        raise RequestError(f"{name} has version {version!r:.40}, not {VERSION}")
    theirs = header.get("made_with")
    for key, value in made_with.items():
        other = theirs.get(key) if isinstance(theirs, dict) else None
        if other != value:
            raise RequestError(f"{name} was made with {key} {other!r:.200}, here it is {value!r}")


def _drafts(file: _Checked, header: Mapping[str, Any], draft: DraftFormat | None) -> list[Bytes]:
    """What the model that guesses here has of the file's pages; of another one, nothing."""
    size = header["draft_bytes"]
    found = [_bytes(file, size) for _ in range(header["n_pages"] if size else 0)]
    is_same = draft is not None and (header.get("draft"), size) == (
        draft.made_with,
        draft.page_bytes,
    )
    return found if is_same else []


def _bytes(file: _Checked, size: int) -> Bytes:
    return np.frombuffer(file.take(size), np.uint8)
