"""Weight matrices in the layout that the kernels want, packed on the device from GGUF blocks.

``unpack.cl`` describes the layout. The same memory serves both kernel families.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyopencl as cl

from kernels.device import Device
from kernels.program import Programs
from kernels.quants import TensorType, by_name

ROWS = 16  # rows side by side (lanes.cl)
BLOCK = 32  # columns per block

# Bytes per 32 columns of 16 rows: codes, and scales with the blocks that share them.
LAYOUTS: dict[str, tuple[int, int, int]] = {
    "Q4_0": (256, 32, 1),
    "Q4_1": (256, 64, 1),
    "Q5_0": (320, 32, 1),
    "Q5_1": (320, 64, 1),
    "Q8_0": (512, 32, 1),
    "Q4_K": (256, 320, 8),
    "Q5_K": (320, 320, 8),
    "Q6_K": (384, 288, 8),
}
FLOATS = {"F32": 4, "F16": 2, "BF16": 2}
SUPPORTED_TYPES = (*FLOATS, *LAYOUTS)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A packed weight matrix of ``n_rows`` x ``n_cols``.

    With ``paired``, rows of two matrices (gate and up) alternate in groups of 16 and n_rows
    counts both.
    """

    buffer: Any
    type: TensorType
    n_rows: int
    n_cols: int
    scales_at: int
    n_bytes: int
    paired: bool = False

    @property
    def is_float(self) -> bool:
        return self.type.name in FLOATS

    @property
    def n_blocks(self) -> int:
        """Blocks per row; for float weights, columns (what the kernels call n_blocks)."""
        return self.n_cols if self.is_float else self.n_cols // BLOCK

    @property
    def n_groups(self) -> int:
        return -(-self.n_rows // ROWS)

    @property
    def define(self) -> str:
        return f"TYPE_{self.type.name}"


def packed_size(type_name: str, n_groups: int, n_cols: int) -> tuple[int, int]:
    """Bytes of the codes (where the scales begin) and of the whole packed matrix."""
    if type_name in FLOATS:
        size = n_groups * ROWS * n_cols * FLOATS[type_name]
        return size, size
    codes, scales, blocks = LAYOUTS[type_name]
    n_blocks = n_cols // BLOCK
    scales_at = n_groups * n_blocks * codes
    return scales_at, scales_at + n_groups * (n_blocks // blocks) * scales


@dataclass(frozen=True, slots=True)
class RawMatrix:
    """A matrix as it lies in the file: ``data`` is its bytes, rows one after another."""

    data: npt.NDArray[np.uint8]
    type: TensorType
    n_rows: int
    n_cols: int


def pack(
    device: Device, programs: Programs, parts: Sequence[RawMatrix], *, paired: bool = False
) -> Matrix:
    """Pack one matrix, or several of one type and width, below each other or paired.

    Stacked parts but the last need a multiple of 16 rows. Raises ValueError otherwise.
    """
    first = parts[0]
    if any((p.type, p.n_cols) != (first.type, first.n_cols) for p in parts):
        raise ValueError("matrices of different types or widths cannot be packed together")
    if first.type.name not in SUPPORTED_TYPES:
        raise ValueError(f"no kernel for tensor type {first.type.name}")
    if not paired and any(p.n_rows % ROWS for p in parts[:-1]):
        raise ValueError("a stacked matrix needs a multiple of 16 rows")
    n_rows = sum(p.n_rows for p in parts)
    n_groups = sum(-(-p.n_rows // ROWS) for p in parts)
    if paired:
        n_groups = -(-n_groups // 4) * 4  # a unit of the kernels is two pairs
    scales_at, n_bytes = packed_size(first.type.name, n_groups, first.n_cols)
    buffer = cl.Buffer(device.context, cl.mem_flags.READ_WRITE, max(n_bytes, 16))
    if paired:
        cl.enqueue_fill_buffer(device.queue, buffer, np.zeros(1, np.uint8), 0, n_bytes)
    matrix = Matrix(buffer, first.type, n_rows, first.n_cols, scales_at, n_bytes, paired)
    row = 0
    for i, part in enumerate(parts):
        _pack_part(device, programs, matrix, part, row, (2, i) if paired else (1, 0))
        row += 0 if paired else part.n_rows
    return matrix


def _pack_part(
    device: Device,
    programs: Programs,
    matrix: Matrix,
    part: RawMatrix,
    row: int,
    groups: tuple[int, int],
) -> None:
    kernel = programs.kernel("pack.cl", "pack", (matrix.define,))
    flags = cl.mem_flags.READ_ONLY
    raw = cl.Buffer(device.context, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=part.data)
    kernel.set_args(
        raw,
        matrix.buffer,
        np.uint64(matrix.scales_at),
        np.int32(part.n_rows),
        np.int32(matrix.n_blocks),
        np.int32(row),
        np.int32(groups[0]),
        np.int32(groups[1]),
    )
    n_blocks = -(-matrix.n_cols // BLOCK)
    padded = -(-part.n_rows // ROWS) * ROWS
    cl.enqueue_nd_range_kernel(device.queue, kernel, (n_blocks, padded), None)
    device.queue.finish()
    raw.release()


def raw_matrix(data: npt.NDArray[np.uint8], type_name: str, n_rows: int, n_cols: int) -> RawMatrix:
    """A RawMatrix of a type given by name."""
    return RawMatrix(data, by_name(type_name), n_rows, n_cols)
