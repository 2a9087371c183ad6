"""The header of one GGUF file: its metadata and where its tensors lie.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Files come from
anywhere, so nothing in them is believed: every length is held against the bytes that are
there before it is used. The only key whose meaning matters here is ``general.alignment``.
"""

from __future__ import annotations

import mmap
import reprlib
import struct
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.errors import ModelError
from gguf_serve.kernels.quantization.quants import TENSOR_TYPES, TensorType

MAX_DIMS = 4
MAX_NESTING = 4  # arrays within arrays
MAX_ALIGNMENT = 1 << 20
# Far above any real file, and what bounds the time and memory that a hostile one can take:
# Python's objects are several times larger than what they are read from.
MAX_HEADER_BYTES = 128 << 20
MAX_KEYS = MAX_ARRAYS = 1 << 16
MAX_TENSORS = 1 << 18

_KEY_BYTES = 8 + 4 + 1  # what a key takes at least: length, type, value
_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # length of the name, dimensions, one of them, type, offset
_ARRAY_BYTES = 4 + 8  # type and number of its elements
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"),
    4: np.dtype("<u4"), 5: np.dtype("<i4"), 6: np.dtype("<f4"), _BOOL: np.dtype("<u1"),
    10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip
_U64 = struct.Struct("<Q")


class TensorInfo(Struct, frozen=True):
    """A tensor of the file; ``shape`` in GGUF's order, the fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    n_bytes: int
    part: int  # index of the file, of a split model
    offset: int  # of its first byte, from the beginning of that file

    @property
    def n_elements(self) -> int:
        return prod(self.shape)


class FilePart(Struct, frozen=True):
    """One file. A model that is not split is one part."""

    path: Path
    map: mmap.mmap
    version: int
    metadata: dict[str, Any]
    tensors: list[TensorInfo]

    def split(self, name: str) -> int:
        """A number about the split; 0 where the file is not part of one."""
        value = self.metadata.get(f"split.{name}", 0)
        if not isinstance(value, int) or value < 0:
            raise ModelError(f"{self.path}: split.{name} is {shown(value)}, expected 0 or more")
        return value


class _Cursor:
    """A position in a file; every read checks first that the bytes are there."""

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        self.map = mapping
        self.position = 0
        self.end = min(len(mapping), MAX_HEADER_BYTES)
        self.n_arrays = 0

    def error(self, problem: str) -> ModelError:
        return ModelError(f"{self.path}: {problem}")

    def require(self, n_bytes: int, what: str) -> int:
        """Step over ``n_bytes``; returns where they begin."""
        start = self.position
        if n_bytes > self.end - start:
            if self.end < len(self.map):
                raise self.error(f"{what} ends beyond the first {MAX_HEADER_BYTES >> 20} MiB")
            raise self.error(
                f"truncated or damaged: {what} needs {n_bytes} bytes at offset {start}, "
                f"the file has {len(self.map)}"
            )
        self.position = start + n_bytes
        return start

    def check_count(self, count: int, least: int, what: str) -> None:
        """Whether ``count`` things of at least ``least`` bytes can follow."""
        if count > (self.end - self.position) // least:
            raise self.error(
                f"truncated or damaged: {what} has {count} elements, more than fit into the file"
            )

    def numbers(self, dtype: np.dtype[Any], count: int, what: str) -> npt.NDArray[Any]:
        start = self.require(count * dtype.itemsize, what)
        # frombuffer refuses to look at nothing at the end of a buffer
        return np.frombuffer(self.map, dtype, count, start).copy() if count else np.empty(0, dtype)

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def take(self, count: int, what: str) -> bytes:
        start = self.require(count, what)
        return self.map[start : self.position]

    def string(self, what: str) -> str:
        raw = self.take(self.u64(f"the length of {what}"), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8: {shown(raw)}, byte {error.start}") from None

    def strings(self, count: int, what: str) -> list[str]:
        """``count`` strings. A vocabulary has hundreds of thousands, hence the bare loop."""
        self.check_count(count, _U64.size, what)
        mapping, end, position = self.map, self.end, self.position
        unpack = _U64.unpack_from
        result: list[str] = []
        append = result.append
        before = position
        # A fault is found a second time below, where there is time to say what it is.
        with suppress(struct.error, UnicodeDecodeError):
            for _ in range(count):
                before = position
                start = position + 8
                position = start + unpack(mapping, position)[0]
                if position > end:
                    break
                append(mapping[start:position].decode())
        if len(result) < count:
            self.position = before
            self.string(f"{what}[{len(result)}]")
        self.position = position
        return result


def read_part(path: Path, mapping: mmap.mmap, index: int) -> FilePart:
    """Read one file, part ``index`` of its model; ModelError for whatever is wrong with it."""
    cursor = _Cursor(path, mapping)
    version = _read_version(cursor)
    n_tensors, n_keys = cursor.u64("the number of tensors"), cursor.u64("the number of keys")
    room = cursor.end - cursor.position
    if n_keys > min(MAX_KEYS, room // _KEY_BYTES):
        raise cursor.error(f"impossible number of keys for {len(mapping)} bytes: {n_keys}")
    if n_tensors > min(MAX_TENSORS, room // _TENSOR_BYTES):
        raise cursor.error(f"impossible number of tensors for {len(mapping)} bytes: {n_tensors}")
    metadata = _read_metadata(cursor, n_keys)
    tensors = _read_tensors(cursor, n_tensors, index)
    tensors = _placed(cursor, tensors, _alignment(cursor, metadata))
    return FilePart(path, mapping, version, metadata, tensors)


def _read_version(cursor: _Cursor) -> int:
    magic = cursor.take(4, "the magic number")
    if magic != b"GGUF":
        raise cursor.error(f"is not a GGUF file: it begins with {magic!r}, not b'GGUF'")
    version = cursor.u32("the version")
    if version in (2, 3):
        return version
    if version == 1:
        raise cursor.error("GGUF version 1 is not supported; convert the model again")
    if version & 0xFFFF == 0 and version:
        raise cursor.error("is a big-endian GGUF file; only little-endian ones are supported")
    raise cursor.error(f"unknown GGUF version {version}; known: 2, 3")


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for i in range(count):
        key = cursor.string(f"the name of key {i}")
        if key in metadata:
            raise cursor.error(f"key {shown(key)} is there twice")
        metadata[key] = _read_value(cursor, cursor.u32(f"the type of {shown(key)}"), shown(key))
    return metadata


def _read_value(cursor: _Cursor, kind: int, key: str, depth: int = 0) -> Any:
    if kind == _STRING:
        return cursor.string(key)
    if kind == _ARRAY:
        return _read_array(cursor, key, depth + 1)
    if kind not in _NUMBERS:
        raise cursor.error(f"key {key} has the unknown value type {kind}")
    value = cursor.numbers(_NUMBERS[kind], 1, key).item()
    return bool(value) if kind == _BOOL else value


def _read_array(cursor: _Cursor, key: str, depth: int) -> Any:
    if depth > MAX_NESTING:
        raise cursor.error(f"key {key} has arrays nested more than {MAX_NESTING} deep")
    cursor.n_arrays += 1
    if cursor.n_arrays > MAX_ARRAYS:
        raise cursor.error(f"key {key} is beyond the {MAX_ARRAYS} arrays that a file may have")
    kind = cursor.u32(f"the element type of {key}")
    count = cursor.u64(f"the length of {key}")
    if kind == _STRING:
        return cursor.strings(count, key)
    if kind == _ARRAY:
        cursor.check_count(count, _ARRAY_BYTES, key)
        return [_read_array(cursor, key, depth + 1) for _ in range(count)]
    if kind not in _NUMBERS:
        raise cursor.error(f"key {key} is an array of the unknown value type {kind}")
    values = cursor.numbers(_NUMBERS[kind], count, key)
    return values != 0 if kind == _BOOL else values


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.error(
            f"general.alignment is {shown(value)}, not a power of two up to {MAX_ALIGNMENT}"
        )
    return value


def _read_tensors(cursor: _Cursor, count: int, part: int) -> list[TensorInfo]:
    """The table of tensors; each ``offset`` still counts from the beginning of the data."""
    tensors: dict[str, TensorInfo] = {}
    for i in range(count):
        name = cursor.string(f"the name of tensor {i}")
        if name in tensors:
            raise cursor.error(f"tensor {shown(name)} is there twice")
        tensors[name] = _read_tensor(cursor, name, part)
    return list(tensors.values())


def _read_tensor(cursor: _Cursor, name: str, part: int) -> TensorInfo:
    what = f"tensor {shown(name)}"
    n_dims = cursor.u32(f"the number of dimensions of {what}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.error(f"{what} has {n_dims} dimensions, not 1 to {MAX_DIMS}")
    shape = tuple(cursor.numbers(_NUMBERS[10], n_dims, f"the shape of {what}").tolist())
    n_elements = prod(shape)
    if not 0 < n_elements < 1 << 63:
        raise cursor.error(f"{what} has the impossible shape {shape}")
    kind = TENSOR_TYPES.get(kind_id := cursor.u32(f"the type of {what}"))
    if kind is None:
        raise cursor.error(f"{what} is of the unknown type {kind_id}")
    if shape[0] % kind.block_elements:
        raise cursor.error(
            f"{what} has rows of {shape[0]} elements, which are not whole blocks of "
            f"{kind.block_elements} ({kind.name})"
        )
    n_bytes = n_elements // kind.block_elements * kind.block_bytes
    return TensorInfo(name, shape, kind, n_bytes, part, cursor.u64(f"the offset of {what}"))


def _placed(cursor: _Cursor, tensors: list[TensorInfo], alignment: int) -> list[TensorInfo]:
    """The same tensors with ``offset`` from the beginning of the file."""
    begin = -(-cursor.position // alignment) * alignment
    size = len(cursor.map)
    placed = []
    for info in tensors:
        what = f"tensor {shown(info.name)}"
        if info.offset % alignment:
            raise cursor.error(
                f"{what} lies at offset {info.offset}, not a multiple of {alignment}"
            )
        end = begin + info.offset + info.n_bytes
        if end > size:
            raise cursor.error(
                f"truncated or damaged: {what} ends at byte {end}, the file has {size}"
            )
        placed.append(replace(info, offset=begin + info.offset))
    for one, other in pairwise(sorted(placed, key=lambda info: info.offset)):
        if one.offset + one.n_bytes > other.offset:
            raise cursor.error(f"tensors {shown(one.name)} and {shown(other.name)} overlap")
    return placed


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def shown(value: object) -> str:
    """A value for an error message: one line, and not a long one."""
    return " ".join(_SHORT.repr(value).split())
