"""The tensor types of ggml: how many elements a block holds and how many bytes it takes.

Names, ids and sizes are facts of the GGUF format, see ``ggml_type`` and its traits in
https://github.com/ggml-org/ggml/blob/master/include/ggml.h. Knows nothing of what the
bytes mean. An id that is missing here was withdrawn from the format.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorType:
    """How a tensor is stored; a row is a whole number of blocks."""

    name: str
    id: int  # as GGUF files write it
    block_elements: int
    block_bytes: int


_TYPES = (
    TensorType("F32", 0, 1, 4),
    TensorType("F16", 1, 1, 2),
    TensorType("Q4_0", 2, 32, 18),
    TensorType("Q4_1", 3, 32, 20),
    TensorType("Q5_0", 6, 32, 22),
    TensorType("Q5_1", 7, 32, 24),
    TensorType("Q8_0", 8, 32, 34),
    TensorType("Q8_1", 9, 32, 40),
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

# Half-precision weights as integers, for devices that multiply these faster than floats: per 32
# values a float32 scale and 32 int16 codes of at most 4096, of which the largest is one. It adds
# an error like that of half precision itself. Of our own making: no file has it.
INT13 = TensorType("INT13", -1, 32, 68)

TENSOR_TYPES: dict[int, TensorType] = {kind.id: kind for kind in _TYPES}
_BY_NAME = {kind.name: kind for kind in (*_TYPES, INT13)}


def by_name(name: str) -> TensorType:
    """The type called ``name``, as "Q4_K". Raises ValueError, naming it, if there is none."""
    if name not in _BY_NAME:
        raise ValueError(f"unknown tensor type {name!r}; known: {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


# Where the half-precision scales of a block are, in bytes; all others may be anything, but for the
# scales of MXFP4 and NVFP4.
HALF_OFFSETS: dict[str, tuple[int, ...]] = {
    "Q1_0": (0,),
    "Q2_0": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ1_S": (0,),
    "IQ1_M": (),  # split: four bits at the top of each of its last four words
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    "MXFP4": (),
    "NVFP4": (),
}
