"""The tensor types of ggml, one a row: how their blocks lie in files, and how they are packed.

Names, ids and sizes are facts of the GGUF format, see ``ggml_type`` and its traits in
https://github.com/ggml-org/ggml/blob/master/include/ggml.h. An id that is missing here was
withdrawn from the format. A row gives the .cl files all that they know of its type but how a
block's codes and integer scales are read, which is in blocks.cl.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from msgspec import Struct

from gguf_serve.kernels.quantization.packing import (
    BLOCK,
    CHAR,
    CHARS,
    E8M0,
    FLOAT,
    HALVES,
    IQ1M,
    IQ1S,
    K2,
    NIBBLES,
    ROWS,
    UE4M3,
    Floats,
    K,
    Packing,
    Scales,
)


class TensorType(Struct, frozen=True):
    """How a tensor is stored; a row is a whole number of blocks.

    ``packing``: how kernels have it; None for types of which there are no matrices.
    """

    name: str
    id: int  # as GGUF files write it
    block_elements: int
    block_bytes: int
    packing: Packing | Floats | None = None

    @property
    def is_float(self) -> bool:
        return isinstance(self.packing, Floats)

    @property
    def scales(self) -> Scales | None:
        """The form of its scales, if its codes are integers that kernels read."""
        return self.packing.scales if isinstance(self.packing, Packing) else None

    @property
    def takes_bytes(self) -> bool:
        """Whether its matrices can be multiplied with activations of 8 bits."""
        return self.scales is not None and self.scales.takes_bytes

    @property
    def takes_spans(self) -> bool:
        """Whether its matrices are multiplied faster if blocks of activations share a scale."""
        return isinstance(self.packing, Packing) and self.packing.span > 1

    @property
    def has_super_blocks(self) -> bool:
        """Whether blocks of 32 columns share a scale of scales: K-quants, IQ types but IQ4_NL."""
        return self.blocks > 1

    @property
    def has_matrix_scale(self) -> bool:
        """Whether a matrix has a scale of the whole beside those of blocks."""
        return self.scales is not None and self.scales.of_matrix

    @property
    def half_offsets(self) -> tuple[int, ...]:
        """Where in a block its half-precision scales begin."""
        return self.packing.halves if isinstance(self.packing, Packing) else ()

    @property
    def defines(self) -> tuple[str, ...]:
        """What the .cl files are told of it, its name first."""
        return _defines(self)

    def packed_size(self, n_groups: int, n_cols: int) -> tuple[int, int]:
        """Bytes of the codes, where the scales begin, and of all of a packed matrix of so many
        groups of 16 rows. ValueError if there are no kernels for the type."""
        if isinstance(self.packing, Floats):
            size = n_groups * ROWS * n_cols * self.packing.n_bytes
            return size, size
        if self.packing is None:
            raise ValueError(f"no kernel for tensor type {self.name}")
        n_blocks = n_cols // BLOCK
        codes = n_groups * n_blocks * self.packing.code_bytes
        scales = self.packing.scale_bytes(self.blocks)
        return codes, codes + n_groups * (n_blocks // self.blocks) * scales

    @property
    def blocks(self) -> int:
        """Blocks of 32 columns, as kernels have them, in one of the file."""
        return self.block_elements // BLOCK


@functools.cache
def _defines(kind: TensorType) -> tuple[str, ...]:
    packing = kind.packing
    found: Iterable[str] = ()
    if isinstance(packing, Floats):
        found = packing.defines()
    elif packing is not None:
        found = packing.defines(kind.blocks)
    return (f"TYPE_{kind.name}", f"BLOCK_BYTES={kind.block_bytes}", *found)


# What codes of 2 to 4 bits of some types stand for.
IQ2_VALUES = (-43, -25, -8, 8, 25, 43)
IQ3_VALUES = (-62, -52, -44, -36, -28, -20, -12, -4, 4, 12, 20, 28, 36, 44, 52, 62)
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)

_TYPES = (
    TensorType("F32", 0, 1, 4, Floats(4, "LOAD_FLOAT")),
    TensorType("F16", 1, 1, 2, Floats(2, "LOAD_HALF")),
    TensorType("Q4_0", 2, 32, 18, Packing(4, offset=8)),
    TensorType("Q4_1", 3, 32, 20, Packing(4, HALVES, halves=(0, 2))),
    TensorType("Q5_0", 6, 32, 22, Packing(5, offset=16)),
    TensorType("Q5_1", 7, 32, 24, Packing(5, HALVES, halves=(0, 2))),
    TensorType("Q8_0", 8, 32, 34, Packing(8)),
    TensorType("Q8_1", 9, 32, 40),
    TensorType("Q2_K", 10, 256, 84, Packing(2, K2, halves=(80, 82))),
    TensorType("Q3_K", 11, 256, 110, Packing(3, CHARS, halves=(108,))),
    TensorType("Q4_K", 12, 256, 144, Packing(4, K, halves=(0, 2))),
    TensorType("Q5_K", 13, 256, 176, Packing(5, K, halves=(0, 2))),
    TensorType("Q6_K", 14, 256, 210, Packing(6, CHARS, halves=(208,))),
    TensorType("Q8_K", 15, 256, 292),
    TensorType("IQ2_XXS", 16, 256, 66, Packing(3, CHAR, step=1 / 8, values=IQ2_VALUES)),
    TensorType("IQ2_XS", 17, 256, 74, Packing(3, NIBBLES, step=1 / 8, values=(0, *IQ2_VALUES))),
    TensorType("IQ3_XXS", 18, 256, 98, Packing(4, CHAR, step=1 / 4, values=IQ3_VALUES)),
    TensorType("IQ1_S", 19, 256, 50, Packing(2, IQ1S)),
    TensorType("IQ4_NL", 20, 32, 18, Packing(4, values=IQ4_VALUES)),
    TensorType("IQ3_S", 21, 256, 110, Packing(4, CHAR, step=2, offset=15)),
    TensorType("IQ2_S", 22, 256, 82, Packing(3, NIBBLES, step=1 / 8, values=(0, *IQ2_VALUES))),
    TensorType("IQ4_XS", 23, 256, 136, Packing(4, CHAR, values=IQ4_VALUES)),
    TensorType("I8", 24, 1, 1),
    TensorType("I16", 25, 1, 2),
    TensorType("I32", 26, 1, 4),
    TensorType("I64", 27, 1, 8),
    TensorType("F64", 28, 1, 8),
    TensorType("IQ1_M", 29, 256, 56, Packing(2, IQ1M, step=1 / 8, halves=())),
    TensorType("BF16", 30, 1, 2, Floats(2, "LOAD_BF16")),
    TensorType("TQ1_0", 34, 256, 54, Packing(2, offset=1, halves=(52,))),
    TensorType("TQ2_0", 35, 256, 66, Packing(2, offset=1, halves=(64,))),
    TensorType("MXFP4", 39, 32, 17, Packing(4, E8M0, values=FP4_VALUES, halves=())),
    TensorType("NVFP4", 40, 64, 36, Packing(4, UE4M3, values=FP4_VALUES, halves=())),
    TensorType("Q1_0", 41, 128, 18, Packing(1, step=2, offset=1)),
    TensorType("Q2_0", 42, 64, 18, Packing(2, offset=1)),
)

# How half-precision weights of a file are packed as integers, for devices that multiply these
# faster than floats: 32 int16 codes, of magnitudes of at most 4096 in the mean, and a power of two
# as their scale. Those of the largest two to four exponents are exact, of BF16 of three more.
_AS_INTEGERS = Packing(16, FLOAT, halves=(), largest=4096)
INTEGERS_OF = {
    "F16": TensorType("F16_INT13", -1, 32, 64, _AS_INTEGERS),
    "BF16": TensorType("BF16_INT13", -2, 32, 64, _AS_INTEGERS),
}  # fmt: skip

TENSOR_TYPES: dict[int, TensorType] = {kind.id: kind for kind in _TYPES}
_BY_NAME = {kind.name: kind for kind in (*_TYPES, *INTEGERS_OF.values())}


def by_name(name: str) -> TensorType:
    """The type called ``name``, as "Q4_K". Raises ValueError, naming it, if there is none."""
    if name not in _BY_NAME:
        raise ValueError(f"unknown tensor type {name!r}; known: {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


# Types of matrices that files may have.
SUPPORTED_TYPES = tuple(kind.name for kind in _TYPES if kind.packing is not None)
