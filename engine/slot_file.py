"""Files of what a slot has left in the cache: its tokens, their KV pages, a state.

A file is ``MAGIC``, the length of the header (uint32), the header (JSON), the token ids (int64),
then for each page its bytes, then the state's; all little-endian. The header says what the file
was made with; it can be used only where all of that is the same.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from engine.errors import RequestError

MAGIC = b"GGUFSLOT"
VERSION = 1
MOST_HEADER = 1 << 20  # bytes

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SlotContent:
    """``tokens`` and the pages that hold their KV; ``state``: what a slot keeps beside pages
    after all of them."""

    tokens: Sequence[int]
    pages: Sequence[Bytes]
    state: Bytes


def write_slot_file(path: Path, made_with: Mapping[str, Any], content: SlotContent) -> int:
    """Write a file, whole or not at all; returns its bytes. RequestError: it cannot be."""
    header = json.dumps({
        "version": VERSION, "made_with": dict(made_with), "n_tokens": len(content.tokens),
        "n_pages": len(content.pages), "state_bytes": content.state.nbytes,
    }).encode()  # fmt: skip
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(MAGIC + struct.pack("<I", len(header)) + header)
            file.write(np.asarray(content.tokens, "<i8").tobytes())
            for page in (*content.pages, content.state):
                file.write(page.data)
            n_bytes = file.tell()
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise RequestError(f"cannot write {path.name}: {error.strerror}") from error
    return n_bytes


def read_slot_file(path: Path, made_with: Mapping[str, Any], page_bytes: int) -> SlotContent:
    """RequestError for a file that cannot be read, is none, or was made with something else."""
    try:
        with path.open("rb") as file:
            header = _read_header(file, path.name)
            _check(header, made_with, path.name)
            tokens = np.frombuffer(_take(file, 8 * header["n_tokens"], path.name), "<i8")
            pages = [_bytes(file, page_bytes, path.name) for _ in range(header["n_pages"])]
            return SlotContent(
                tokens.tolist(), pages, _bytes(file, header["state_bytes"], path.name)
            )
    except OSError as error:
        raise RequestError(f"cannot read {path.name}: {error.strerror}") from error


def _read_header(file: BinaryIO, name: str) -> dict[str, Any]:
    start = file.read(len(MAGIC) + 4)
    if len(start) < len(MAGIC) + 4 or not start.startswith(MAGIC):
        raise RequestError(f"{name} is not a file of a slot")
    (size,) = struct.unpack("<I", start[len(MAGIC) :])
    try:
        header = json.loads(_take(file, min(size, MOST_HEADER), name))
        numbers = [header[key] for key in ("n_tokens", "n_pages", "state_bytes")]
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(numbers)
        return dict(header)
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{name} has a damaged header") from error


def _check(header: Mapping[str, Any], made_with: Mapping[str, Any], name: str) -> None:
    if header.get("version") != VERSION:
        raise RequestError(f"{name} has version {header.get('version')!r}, not {VERSION}")
    theirs = header.get("made_with")
    for key, value in made_with.items():
        other = theirs.get(key) if isinstance(theirs, dict) else None
        if other != value:
            raise RequestError(f"{name} was made with {key} {other!r}, here it is {value!r}")


def _take(file: BinaryIO, size: int, name: str) -> bytes:
    if size > os.fstat(file.fileno()).st_size - file.tell():  # before room is made for it
        raise RequestError(f"{name} is cut short")
    return file.read(size)


def _bytes(file: BinaryIO, size: int, name: str) -> Bytes:
    return np.frombuffer(_take(file, size, name), np.uint8)
