"""Whether a file's tensors hold numbers: --check-tensors reads them all before they are loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.kernels.quantization import packing
from gguf_serve.kernels.quantization.quants import TensorType

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
BLOCKS_AT_ONCE = 1 << 20
FLOATS: dict[str, type[np.floating[Any]]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
}


def check_tensor_values(gguf: GGUFFile) -> None:
    """ModelError names the first tensor with a value, or a scale, that is NaN or infinite."""
    for name, info in gguf.tensors.items():
        kind = info.type
        blocks = gguf.data(name).reshape(-1, kind.block_bytes)
        for at in range(0, len(blocks), BLOCKS_AT_ONCE):
            wrong = ~_valid(blocks[at : at + BLOCKS_AT_ONCE], kind)
            if wrong.any():
                first = (at + int(np.argmax(wrong))) * kind.block_elements
                raise ModelError(
                    f"{gguf.path}: tensor {name} ({kind.name}) is not a number at element {first}"
                )
        gguf.drop_pages()


def _valid(blocks: Bytes, kind: TensorType) -> Flags:
    """For each block, or single value, whether it is finite."""
    if kind.name in FLOATS:
        values: npt.NDArray[np.floating[Any]] = blocks.view(FLOATS[kind.name])[:, 0]
        finite: Flags = np.isfinite(values)
        return finite
    valid = np.ones(len(blocks), np.bool_)
    scales = kind.scales
    if kind.name == "BF16":
        valid &= (blocks.view(np.uint16)[:, 0] & 0x7F80) != 0x7F80
    elif scales == packing.E8M0:  # an exponent, of which 255 is NaN
        valid &= blocks[:, 0] != 0xFF
    elif scales == packing.UE4M3:  # four scales of 8 bits without infinities, of which 127 is NaN
        valid &= ((blocks[:, :4] & 0x7F) != 0x7F).all(axis=1)
    elif scales == packing.IQ1M:  # the exponent of a half whose digits top the last four words
        words = blocks[:, -8:].copy().view(np.uint16) >> 12
        valid &= (words[:, 3] << 12 | words[:, 2] << 8) & 0x7C00 != 0x7C00
    for at in kind.half_offsets:
        valid &= np.isfinite(blocks[:, at : at + 2].copy().view(np.float16)[:, 0])
    return valid
