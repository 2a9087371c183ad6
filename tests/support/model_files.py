"""Model files with other tensors than they came with, and LoRA adapters of random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType, GGUFWriter

Floats = npt.NDArray[np.float32]
RANK = 8
Updates = dict[str, tuple[Floats, Floats]]  # by tensor: A [rank, n_cols], B [n_rows, rank]


def copy_model(
    path: Path, target: Path, tensors: Mapping[str, Any], types: Mapping[str, Any] | None = None
) -> Path:
    """A model's metadata with these tensors: floats, or bytes where there is a type."""
    reader = GGUFReader(path)
    arch = reader.get_field("general.architecture")
    assert arch is not None
    writer = GGUFWriter(target, arch.contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind, sub = field.types[0], field.types[-1]
        is_array = kind == GGUFValueType.ARRAY
        writer.add_key_value(field.name, field.contents(), kind, sub if is_array else None)
    for name, data in tensors.items():
        writer.add_tensor(name, data, raw_dtype=(types or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def updates_of(path: Path, seed: int, ends: tuple[str, ...] = ()) -> Updates:
    """Updates of every matrix of every layer, or of those whose names end so; of experts a
    matrix each, of the embedding the other way round."""
    rng = np.random.default_rng(seed)
    found = {}
    for tensor in GGUFReader(path).tensors:
        name, shape = tensor.name, [int(n) for n in tensor.shape]
        if ends and not name.endswith(ends):
            continue
        if not ends and not (name.startswith("blk.") and len(shape) == 2):
            continue
        n_cols, n_rows = shape[::-1] if name == "token_embd.weight" else shape[:2]
        a = rng.standard_normal((*shape[2:], RANK, n_cols), dtype=np.float32)
        b = 0.3 * rng.standard_normal((*shape[2:], n_rows, RANK), dtype=np.float32)
        a, b = a / np.float32(n_cols**0.5), b / np.float32(RANK)
        found[name] = (np.ascontiguousarray(a.T), b) if name == "token_embd.weight" else (a, b)
    assert found
    return found


def write_adapter(
    path: Path,
    updates: Updates,
    alpha: float,
    arch: str = "llama",
    invocation: Sequence[int] = (),
) -> Path:
    writer = GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    if invocation:
        writer.add_array("adapter.alora.invocation_tokens", list(invocation))
    for name, (a, b) in updates.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
    ):
        step()
    writer.close()
    return path
