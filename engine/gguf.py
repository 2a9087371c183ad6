"""Reads GGUF files, version 2 and 3, little-endian, in one or several parts.

Mirrors the format as https://github.com/ggml-org/ggml/blob/master/docs/gguf.md states it:
header, metadata, tensor table, then the aligned tensor data. The file is mapped, never
read as a whole. It is untrusted: every length is checked against what is left of the file
before it is used, so that memory stays in proportion to the file, and whatever is wrong
comes out as one ModelError that names the file, the field and the value.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import stat
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn, Self

import numpy as np

from engine.errors import ModelError
from kernels.quants import TENSOR_TYPES, TensorType

MAGIC = b"GGUF"
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4  # arrays within arrays; no known file nests at all
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32

# Value types of metadata: id -> the scalar as numpy stores it.
_SCALARS = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_BOOL = 7
_STRING = 8
_ARRAY = 9

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_MIN_KEY_VALUE_BYTES = 8 + 4 + 1  # length of the key, type, the smallest value
_MIN_TENSOR_INFO_BYTES = 8 + 4 + 4 + 8  # length of the name, dimensions, type, offset

# general.file_type, the enum llama_ftype of llama.cpp.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
    38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip

_PART_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the file says about one tensor."""

    name: str
    shape: tuple[int, ...]  # fastest dimension first: (columns, rows, ...)
    type: TensorType
    n_bytes: int
    split: int  # index of the part that holds it, 0 in an ordinary file
    offset: int  # of its first byte, from the start of that part

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class _Part:
    """One file, parsed."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    buffer: mmap.mmap


class GGUFFile:
    """An open model: metadata, the table of its tensors, and their bytes.

    ``metadata`` holds Python scalars and strings, and for arrays lists of str or read-only
    numpy vectors; ``tensors`` is in the order of the file (of the parts, one after another).
    """

    def __init__(self, parts: list[_Part]) -> None:
        first = parts[0]
        self.path = first.path
        self.version = first.version
        self.metadata: Mapping[str, Any] = MappingProxyType(first.metadata)
        self.tensors = {name: info for part in parts for name, info in part.tensors.items()}
        self.file_size = sum(len(part.buffer) for part in parts)
        self.n_bytes = sum(info.n_bytes for info in self.tensors.values())
        self.n_parameters = sum(info.n_elements for info in self.tensors.values())
        self._buffers = [part.buffer for part in parts]
        self.architecture = self.get_str("general.architecture")
        if not self.architecture:
            raise ModelError(f"{self.path}: metadata key 'general.architecture' is empty")

    def data(self, name: str) -> np.ndarray:
        """The bytes of tensor ``name``: uint8 [n_bytes], read-only, a view of the mapping.

        Raises ModelError if the file has no such tensor, ValueError once it is closed.
        """
        info = self.tensors.get(name)
        if info is None:
            raise ModelError(f"{self.path}: no tensor {name!r}")
        if not self._buffers:
            raise ValueError(f"{self.path} is closed")
        return np.frombuffer(self._buffers[info.split], np.uint8, info.n_bytes, info.offset)

    def close(self) -> None:
        """Let go of the file; a mapping is released with the last array that ``data`` gave."""
        while self._buffers:
            buffer = self._buffers.pop()
            try:
                buffer.close()
            except BufferError:
                continue  # an array still looks at it: freed when that array is

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def arch_key(self, suffix: str) -> str:
        """The architecture's own key: "block_count" -> "llama.block_count"."""
        return f"{self.architecture}.{suffix}"

    # The getters below raise ModelError, naming the key, if the value is of another type,
    # or missing and ``default`` is None.

    def get_int(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong(key, value, "an integer")
        return value

    def get_float(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong(key, value, "a number")
        if not math.isfinite(value):
            self._wrong(key, value, "a finite number")
        return float(value)

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            self._wrong(key, value, "a boolean")
        return value

    def get_str(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            self._wrong(key, value, "a string")
        return value

    def get_array(self, key: str, default: np.ndarray | None = None) -> np.ndarray:
        """An array of numbers or booleans: read-only, one-dimensional."""
        value = self._get(key, default)
        if not isinstance(value, np.ndarray):
            self._wrong(key, value, "an array of numbers")
        return value

    def get_strings(self, key: str, default: list[str] | None = None) -> list[str]:
        value = self._get(key, default)
        # The reader gives an empty array of strings as [], and arrays of arrays as lists too.
        if not isinstance(value, list) or (value and not isinstance(value[0], str)):
            self._wrong(key, value, "an array of strings")
        return value

    def get_int_per_layer(
        self, key: str, n_layers: int, default: int | None = None
    ) -> tuple[int, ...]:
        """A value for each layer: the file's array of n_layers integers, or its one integer."""
        value = self._get(key, default)
        if not isinstance(value, np.ndarray):
            return (self.get_int(key, default),) * n_layers
        if value.dtype.kind not in "iub" or len(value) != n_layers:
            self._wrong(key, value, f"an integer or {n_layers} integers, one per layer")
        return tuple(int(item) for item in value)

    def _get(self, key: str, default: object) -> Any:
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelError(f"{self.path}: metadata key {key!r} is missing")
        return value

    def _wrong(self, key: str, value: object, expected: str) -> NoReturn:
        if isinstance(value, list | np.ndarray):
            kind = f"{value.dtype.name}s" if isinstance(value, np.ndarray) else "elements"
            shown = f"an array of {len(value)} {kind}"
        else:
            shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
        raise ModelError(f"{self.path}: metadata key {key!r} is {shown}, not {expected}")


def open_gguf(path: str | Path) -> GGUFFile:
    """Open a model; of a split one, ``path`` is the first part, the others lie beside it.

    Raises ModelError with the file and the problem in one line, whatever is in the file.
    """
    first = _parse(Path(path), split=0)
    parts = [first]
    try:
        for split, part_path in enumerate(_sibling_paths(first), start=1):
            parts.append(_parse(part_path, split))
        _check_parts(parts)
        return GGUFFile(parts)
    except BaseException:
        for part in parts:
            part.buffer.close()
        raise


def file_type_name(metadata: Mapping[str, Any]) -> str:
    """The name of ``general.file_type``, such as "Q4_K_M"; "unknown" if there is none."""
    value = metadata.get("general.file_type")
    if not isinstance(value, int) or isinstance(value, bool):
        return "unknown"
    return _FILE_TYPES.get(value, f"unknown ({value})")


def count_tensor_types(tensors: Iterable[TensorInfo]) -> dict[str, int]:
    """How many tensors there are of each type, most frequent first: {"Q4_K": 169, ...}."""
    return dict(Counter(info.type.name for info in tensors).most_common())


def _map_file(path: Path) -> mmap.mmap:
    try:
        # Before opening it: opening a pipe would wait for a writer.
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise ModelError(f"{path}: is {kind}, not a GGUF file")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{path}: is empty, not a GGUF file")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        problem = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{path}: cannot be opened: {problem}") from error


def _parse(path: Path, split: int) -> _Part:
    buffer = _map_file(path)
    try:
        reader = _Reader(path, buffer)
        version, n_tensors, n_key_values = reader.header()
        metadata = reader.metadata(n_key_values)
        tensors = reader.tensor_table(n_tensors, split, _alignment(path, metadata))
        return _Part(path, version, metadata, tensors, buffer)
    except BaseException:
        buffer.close()
        raise


def _alignment(path: Path, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_ALIGNMENT
    if not valid or value & (value - 1):
        shown = repr(value) if isinstance(value, int | float) else f"of type {type(value).__name__}"
        raise ModelError(
            f"{path}: metadata key 'general.alignment' is {shown}, "
            f"not a power of two up to {MAX_ALIGNMENT}"
        )
    return int(value)


class _Reader:
    """Goes through the fields of one file, in order, from ``position``."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.size = len(buffer)
        self.position = 0
        self.field = "the header"  # what is being read, for messages

    def fail(self, problem: str) -> NoReturn:
        raise ModelError(f"{self.path}: {problem}")

    def header(self) -> tuple[int, int, int]:
        """(version, number of tensors, number of metadata entries)"""
        magic = self.buffer[:4]
        if magic == MAGIC[::-1]:
            self.fail("is a big-endian GGUF file; only little-endian files can be read")
        if magic != MAGIC:
            self.fail(f"not a GGUF file: it begins with {magic!r} instead of {MAGIC!r}")
        self.position = 4
        version = self.u32()
        if version and version & 0xFFFF == 0:
            self.fail("is a big-endian GGUF file; only little-endian files can be read")
        if version not in (2, 3):
            self.fail(f"GGUF version {version} is not supported, only 2 and 3")
        n_tensors, n_key_values = self.u64(), self.u64()
        rest = self.size - self.position
        if n_key_values * _MIN_KEY_VALUE_BYTES > rest:
            self.fail(f"claims {n_key_values} metadata entries, but has only {rest} bytes left")
        if n_tensors * _MIN_TENSOR_INFO_BYTES > rest:
            self.fail(f"claims {n_tensors} tensors, but has only {rest} bytes left")
        return version, n_tensors, n_key_values

    def metadata(self, n_key_values: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for index in range(n_key_values):
            self.field = f"the key of metadata entry {index}"
            key = self.name()
            if key in result:
                self.fail(f"metadata key {key!r} occurs twice")
            self.field = f"metadata key {key!r}"
            result[key] = self.value(self.u32())
        return result

    def tensor_table(self, n_tensors: int, split: int, alignment: int) -> dict[str, TensorInfo]:
        relative = []
        for index in range(n_tensors):
            self.field = f"the name of tensor {index}"
            name = self.name()
            self.field = f"tensor {name!r}"
            relative.append(self.tensor_info(name, split, alignment))
        data_start = -(-self.position // alignment) * alignment
        result: dict[str, TensorInfo] = {}
        for name, shape, tensor_type, n_bytes, offset in relative:
            if name in result:
                self.fail(f"tensor {name!r} occurs twice")
            start = data_start + offset
            if start + n_bytes > self.size:
                self.fail(
                    f"tensor {name!r} ends at byte {start + n_bytes}, "
                    f"but the file has {self.size} bytes: is it complete?"
                )
            result[name] = TensorInfo(name, shape, tensor_type, n_bytes, split, start)
        self.check_overlap(result.values())
        return result
