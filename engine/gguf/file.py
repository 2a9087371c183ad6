"""Reader of GGUF files, versions 2 and 3, whole or split, over mmap.

Knows no architecture and no meaning of a key, but for those that describe the file itself
(``general.architecture``, ``general.file_type``, ``split.*``). The parts of a split model
are named as https://github.com/ggml-org/llama.cpp/tree/master/tools/gguf-split does.
"""

from __future__ import annotations

import mmap
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from hashlib import blake2b
from math import isfinite
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.header import FilePart, TensorInfo, read_part, shown

BARE_KEYS = "xielu."  # hyperparameters without the architecture's name before them
_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)

# general.file_type, see llama_ftype in llama.cpp's include/llama.h
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
    38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
FLOAT_TYPES: dict[str, type[np.floating[Any]]] = {"F32": np.float32, "F16": np.float16}
_GUESSED = 1024  # a flag beside the file type


class GGUFFile:
    """An open GGUF file, or all files of a split one. Close it, or use it in a ``with``.

    ``metadata`` has Python scalars and strings; an array of numbers or flags is a 1-D NumPy
    array, any other array a list. ``tensors`` are in the order of the file.
    """

    def __init__(self, path: Path, parts: list[FilePart]) -> None:
        self.path = path
        self.version = parts[0].version
        self.metadata: Mapping[str, Any] = MappingProxyType(parts[0].metadata)
        self.tensors: dict[str, TensorInfo] = {}
        for part in parts:
            for info in part.tensors:
                if info.name in self.tensors:
                    raise ModelError(
                        f"{part.path}: tensor {shown(info.name)} is in an earlier part already"
                    )
                self.tensors[info.name] = info
        self.architecture = self.get_str("general.architecture")
        if not self.architecture:
            raise ModelError(f"{path}: general.architecture is empty")
        self.n_bytes = sum(info.n_bytes for info in self.tensors.values())
        self.n_parameters = sum(info.n_elements for info in self.tensors.values())
        self.file_size = sum(len(part.map) for part in parts)
        self._maps = [part.map for part in parts]

    def override(self, values: Mapping[str, bool | int | float | str]) -> None:
        """Put values in place of the file's, or beside them; ModelError if the file has one of
        another type under the key."""
        for key, value in values.items():
            own = self.metadata.get(key, value)
            if type(own) is not type(value):
                kind = type(own).__name__
                raise ModelError(
                    f"{self.path}: {key} is {shown(repr(own))} ({kind}), not {value!r}"
                )
        self.metadata = MappingProxyType({**self.metadata, **values})
        self.architecture = self.get_str("general.architecture")

    def with_metadata(self, metadata: Mapping[str, Any]) -> GGUFFile:
        """The same file with other metadata, for as long as this one is open."""
        view = copy(self)
        view.metadata = MappingProxyType(dict(metadata))
        return view

    def with_tensors(self, tensors: Mapping[str, TensorInfo]) -> GGUFFile:
        """The same file with its tensors under other names, for as long as this one is open."""
        view = copy(self)
        view.tensors = dict(tensors)
        return view

    def borrowing(self, other: GGUFFile, names: Sequence[str]) -> GGUFFile:
        """The same file with tensors of another, for as long as both are open; ModelError if that
        does not have them."""
        view, lent = copy(self), dict[str, TensorInfo]()
        for name in names:
            if name not in other.tensors:
                raise ModelError(f"{self.path}: tensor {name} is missing, here and in {other.path}")
            info = other.tensors[name]
            lent[name] = replace(info, part=info.part + len(self._maps))
        view._maps = [*self._maps, *other._maps]
        view.tensors = self.tensors | lent
        return view

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor, uint8 [n_bytes]: a read-only view of the file, not a copy.

        Raises KeyError if there is no such tensor, ValueError after ``close``.
        """
        info = self.tensors[name]
        if not self._maps:
            raise ValueError(f"{self.path} is closed")
        return np.frombuffer(self._maps[info.part], np.uint8, info.n_bytes, info.offset)

    def floats(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor of floats as a flat array; ModelError if it is of another type."""
        kind = self.tensors[name].type.name
        if kind not in FLOAT_TYPES:
            raise ModelError(
                f"{self.path}: tensor {name} is of type {kind}, expected {' or '.join(FLOAT_TYPES)}"
            )
        return self.data(name).view(FLOAT_TYPES[kind]).astype(np.float32)

    def fingerprint(self) -> str:
        """Hash of the metadata and of the beginning of every tensor: what tells models apart."""
        digest = blake2b(digest_size=16)
        for part, mapping in enumerate(self._maps):
            offsets = [info.offset for info in self.tensors.values() if info.part == part]
            digest.update(mapping[: min(offsets, default=len(mapping))])
            for offset in offsets:
                digest.update(mapping[offset : offset + 64])
        return digest.hexdigest()

    def digest(self) -> str:
        """Hash of all bytes, of a file that is not large."""
        digest = blake2b(digest_size=16)
        for mapping in self._maps:
            digest.update(mapping)
        return digest.hexdigest()

    def drop_pages(self) -> None:
        """Let the system take back the memory of what was read; it is read again if needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapping in self._maps:
                mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Give the file up. Views from ``data`` stay valid; the last one frees its mapping."""
        for part in self._maps:
            _release(part)
        self._maps = []

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def arch_key(self, suffix: str) -> str:
        """The key of a hyperparameter, as "llama.block_count"."""
        return suffix if suffix.startswith(BARE_KEYS) else f"{self.architecture}.{suffix}"

    def get_int(self, key: str, default: int | None = None) -> int:
        """An integer. This and the others raise ModelError, naming the key, if it is missing
        and there is no default, or if its value is of another type."""
        value = self._value(key, default)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise self._wrong_type(key, value, "an integer")

    def get_float(self, key: str, default: float | None = None) -> float:
        """A finite number; an integer will do."""
        value = self._value(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
            return float(value)
        raise self._wrong_type(key, value, "a finite number")

    def get_str(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if isinstance(value, str):
            return value
        raise self._wrong_type(key, value, "a string")

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key, default)
        if isinstance(value, bool):
            return value
        raise self._wrong_type(key, value, "true or false")

    def _value(self, key: str, default: Any) -> Any:
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelError(f"{self.path}: {key} is missing")
        return value

    def _wrong_type(self, key: str, value: Any, expected: str) -> ModelError:
        return ModelError(f"{self.path}: {key} is {shown(value)}, not {expected}")


def open_gguf(path: str | Path) -> GGUFFile:
    """Open a model; of a split one, give the first file.

    Raises ModelError, with one line that names the file and the problem, for anything that
    is not a whole and well-formed GGUF file.
    """
    path = Path(path)
    parts = [_open_part(path, 0)]
    try:
        for i, sibling in enumerate(_siblings(parts[0]), start=1):
            parts.append(_open_part(sibling, i))
            _check_part(parts[0], parts[i], i)
        _check_n_tensors(parts)
        return GGUFFile(path, parts)
    except BaseException:
        for part in parts:
            _release(part.map)
        raise


def file_type_name(metadata: Mapping[str, Any]) -> str:
    """What most of a model is quantized to, as "Q4_K_M"; "" if the file does not say."""
    value = metadata.get("general.file_type")
    return _FILE_TYPES.get(value & ~_GUESSED, "") if isinstance(value, int) else ""


def count_tensor_types(gguf: GGUFFile) -> dict[str, int]:
    """How many tensors there are of each type, most frequent first."""
    return dict(Counter(info.type.name for info in gguf.tensors.values()).most_common())


def _open_part(path: Path, index: int) -> FilePart:
    mapping = _map_file(path)
    try:
        return read_part(path, mapping, index)
    except BaseException:
        _release(mapping)
        raise


def _map_file(path: Path) -> mmap.mmap:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ModelError(f"{path}: is a directory, not a GGUF file")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its writer
            raise ModelError(f"{path}: is not a regular file")
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise ModelError(f"{path}: the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{str(path)!r}: cannot be read: {reason}") from None


def _release(mapping: mmap.mmap) -> None:
    with suppress(BufferError):  # arrays still look at it; it ends with the last of them
        mapping.close()


def _siblings(first: FilePart) -> list[Path]:
    """The other files of a split model, in order; ModelError if ``first`` is not the first."""
    count = first.split("count")
    if count <= 1:
        return []
    name = _PART_NAME.fullmatch(first.path.name)
    if name is None or int(name["count"]) != count:
        raise ModelError(
            f"{first.path}: is one of {count} parts of a split model, but is not named "
            f"...-{first.split('no') + 1:05d}-of-{count:05d}.gguf, so the others cannot be found"
        )
    paths = [
        first.path.with_name(f"{name['stem']}-{i:05d}-of-{count:05d}.gguf")
        for i in range(1, count + 1)
    ]
    if first.split("no") != 0:
        raise ModelError(
            f"{first.path}: is part {first.split('no') + 1} of {count} of a split model; "
            f"give the first one, {paths[0].name}"
        )
    if int(name["no"]) != 1:
        raise ModelError(
            f"{first.path}: is the first part of its model (split.no is 0), but is named as "
            f"part {int(name['no'])}"
        )
    for path in paths[1:]:
        if not path.exists():
            raise ModelError(f"{path}: this part of a split model is missing")
    return paths[1:]


def _check_part(first: FilePart, part: FilePart, index: int) -> None:
    found = (part.split("no"), part.split("count"))
    if found != (index, first.split("count")):
        raise ModelError(
            f"{part.path}: split.no is {found[0]} and split.count {found[1]}, not {index} "
            f"and {first.split('count')}: not a part of the same model"
        )


def _check_n_tensors(parts: list[FilePart]) -> None:
    expected = parts[0].split("tensors.count")
    n_tensors = sum(len(part.tensors) for part in parts)
    if len(parts) > 1 and n_tensors != expected:
        raise ModelError(
            f"{parts[0].path}: split.tensors.count is {expected}, but the {len(parts)} parts "
            f"have {n_tensors} tensors"
        )
