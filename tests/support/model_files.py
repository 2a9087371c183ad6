"""Model files with other tensors than they came with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter


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
