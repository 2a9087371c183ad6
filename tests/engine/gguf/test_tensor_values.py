"""Values that are no numbers are found in tensors of every type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.gguf.tensor_values import check_tensor_values
from gguf_serve.kernels.quantization.quants import TENSOR_TYPES, by_name

NAN, INFINITE = 0x7E00, 0xFC00
BAD_BYTES: dict[str, list[tuple[int, bytes]]] = {  # what makes a block invalid, and where
    "F32": [(0, np.float32(np.nan).tobytes()), (0, np.float32(-np.inf).tobytes())],
    "F16": [(0, np.float16(np.inf).tobytes())],
    "BF16": [(0, b"\xc0\x7f"), (0, b"\x80\xff")],
    "MXFP4": [(0, b"\xff")],
    "NVFP4": [(2, b"\x7f"), (3, b"\xff")],
    "IQ1_M": [(48, b"\x00\x00\x00\x00\x00\xc0\x00\x70")],
}
for kind in TENSOR_TYPES.values():
    for place in kind.half_offsets:
        BAD_BYTES.setdefault(kind.name, []).extend(
            (place, int(bits).to_bytes(2, "little")) for bits in (NAN, INFINITE)
        )


def write(path: Path, name: str, blocks: np.ndarray) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("good", np.ones(32, np.float32))
    writer.add_tensor("bad", blocks, raw_dtype=GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


KNOWN = set(GGMLQuantizationType.__members__)  # to the package that writes the file


@pytest.mark.parametrize("name", sorted(BAD_BYTES.keys() & KNOWN))
def test_the_block_is_named(tmp_path: Path, name: str) -> None:
    kind = by_name(name)
    blocks = np.zeros((2, 3 * kind.block_bytes), np.uint8)
    with open_gguf(write(tmp_path / "good.gguf", name, blocks)) as gguf:
        check_tensor_values(gguf)
    for at, data in BAD_BYTES[name]:
        bad = blocks.copy()
        begin = kind.block_bytes + at  # in the second block of the second row
        bad[1, begin : begin + len(data)] = np.frombuffer(data, np.uint8)
        element = 4 * kind.block_elements
        with (
            open_gguf(write(tmp_path / "bad.gguf", name, bad)) as gguf,
            pytest.raises(ModelError, match=rf"tensor bad \({name}\) .* at element {element}$"),
        ):
            check_tensor_values(gguf)
