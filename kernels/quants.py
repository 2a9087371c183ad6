"""The tensor types of ggml: name, id in a GGUF file, and size of a block.

Ids and sizes mirror ``enum ggml_type`` and the ``block_*`` structures of ggml (ggml.h and
ggml-common.h in https://github.com/ggml-org/ggml). Ids missing here were used once and
withdrawn (4, 5, 31-33, 36-38).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorType:
    """How the elements of a tensor are stored: blocks along the rows, no padding between."""

    name: str
    id: int
    block_elements: int  # a row's length is a multiple of this
    block_bytes: int


_ALL = (
    TensorType("F32", 0, 1, 4),
    TensorType("F16", 1, 1, 2),
    TensorType("Q4_0", 2, 32, 18),
    TensorType("Q4_1", 3, 32, 20),
    TensorType("Q5_0", 6, 32, 22),
    TensorType("Q5_1", 7, 32, 24),
    TensorType("Q8_0", 8, 32, 34),
    TensorType("Q8_1", 9, 32, 36),  # half scale and sum; the gguf package still says 40
    TensorType("Q2_K", 10, 256, 84),
    TensorType("Q3_K", 11, 256, 110),
    TensorType("Q4_K", 12, 256, 144),
    TensorType("Q5_K", 13, 256, 176),
    TensorType("Q6_K", 14, 256, 210),
    TensorType("Q8_K", 15, 256, 292),
    TensorType("IQ2_XXS", 16, 256, 66),
    TensorType("IQ2_XS", 17, 256, 74),
    TensorType("IQ3_XXS", 18, 256, 98),
    TensorType("IQ1_S", 19, 256, 50),
    TensorType("IQ4_NL", 20, 32, 18),
    TensorType("IQ3_S", 21, 256, 110),
    TensorType("IQ2_S", 22, 256, 82),
    TensorType("IQ4_XS", 23, 256, 136),
    TensorType("I8", 24, 1, 1),
    TensorType("I16", 25, 1, 2),
    TensorType("I32", 26, 1, 4),
    TensorType("I64", 27, 1, 8),
    TensorType("F64", 28, 1, 8),
    TensorType("IQ1_M", 29, 256, 56),
    TensorType("BF16", 30, 1, 2),
    TensorType("TQ1_0", 34, 256, 54),
    TensorType("TQ2_0", 35, 256, 66),
    TensorType("MXFP4", 39, 32, 17),
    TensorType("NVFP4", 40, 64, 36),
    TensorType("Q1_0", 41, 128, 18),
    TensorType("Q2_0", 42, 64, 18),
)

TENSOR_TYPES: dict[int, TensorType] = {tensor_type.id: tensor_type for tensor_type in _ALL}
_BY_NAME = {tensor_type.name: tensor_type for tensor_type in _ALL}


def by_name(name: str) -> TensorType:
    """The tensor type called ``name``, as in "Q4_K"; ValueError if there is none."""
    if name not in _BY_NAME:
        raise ValueError(f"unknown tensor type {name!r}")
    return _BY_NAME[name]
