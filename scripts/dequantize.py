"""Writes a GGUF file's weights as 32-bit floats: the reference that no rounding touches.

    python scripts/dequantize.py model.gguf model-f32.gguf

Needs the gguf package (extra ``test``); the new file takes four bytes for each parameter.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np


def dequantize(source: Path, target: Path) -> None:
    """Copy all metadata but the file type; every tensor becomes F32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, element)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        shape = tuple(int(n) for n in reversed(tensor.shape))
        writer.add_tensor(tensor.name, np.asarray(values, np.float32).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} MODEL.gguf TARGET.gguf")
    dequantize(Path(sys.argv[1]), Path(sys.argv[2]))
