"""Random weight matrices of every tensor type, as a file holds them and as numbers."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt

from kernels.weights import RawMatrix, raw_matrix

# Byte offsets of the half-precision scales in a block; all other bytes may be anything.
SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def random_matrix(
    type_name: str, n_rows: int, n_cols: int, rng: np.random.Generator
) -> tuple[RawMatrix, npt.NDArray[np.float64]]:
    """A matrix of random bytes with finite scales, and its values by the gguf package."""
    kind = gguf.GGMLQuantizationType[type_name]
    if type_name in SCALES:
        n_elements, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (n_rows, n_cols // n_elements, n_bytes), dtype=np.uint8)
        for at in SCALES[type_name]:
            scales = rng.uniform(-0.02, 0.02, (*blocks.shape[:2], 1)).astype(np.float16)
            blocks[..., at : at + 2] = scales.view(np.uint8)
        data = blocks.reshape(n_rows, -1)
    else:
        values = rng.standard_normal((n_rows, n_cols), dtype=np.float32)
        data = gguf.quants.quantize(values, kind).view(np.uint8)
    numbers = gguf.quants.dequantize(data, kind).astype(np.float64)
    return raw_matrix(np.ascontiguousarray(data).reshape(-1), type_name, n_rows, n_cols), numbers


def columns(type_name: str) -> int:
    """A telling number of columns: odd for floats, else an odd number of blocks if it can be."""
    if type_name in ("F32", "F16", "BF16"):
        return 77
    return 512 if type_name.endswith("_K") else 96
