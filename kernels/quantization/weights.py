"""Weight matrices in the layout that the kernels want, packed on the device from GGUF blocks.

``unpack.cl`` describes the layout. The same memory serves both kernel families.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyopencl as cl
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.memory import ALIGNMENT
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import Tensor, allocate, fill_zero, works_in_place
from gguf_serve.kernels.quantization.packing import BLOCK, ROWS
from gguf_serve.kernels.quantization.quants import INTEGERS_OF, TensorType, by_name

SLAB_ROWS = 256  # whole groups, and biases that begin where a sub-buffer may
SLICE_BYTES = 32 << 20  # of a matrix, copied to the device at a time


class Matrix(Struct, frozen=True):
    """A packed weight matrix of ``n_rows`` x ``n_cols``.

    With ``paired``, rows of two matrices (gate and up) alternate in groups of 16 and n_rows
    counts both. With ``n_experts`` there are so many matrices of n_rows, one after another.
    Where that is more than one buffer can hold, ``slabs`` have some of the rows each (of every
    expert), and ``buffer`` is None.
    """

    buffer: Any
    type: TensorType
    n_rows: int
    n_cols: int
    scales_at: int
    n_bytes: int
    paired: bool = False
    n_experts: int = 1
    slabs: tuple[Matrix, ...] = ()

    @property
    def parts(self) -> Iterator[tuple[int, Matrix]]:
        """The matrices that have a buffer, each with its first row here."""
        row = 0
        for slab in self.slabs or (self,):
            yield row, slab
            row += slab.n_rows

    @property
    def is_float(self) -> bool:
        return self.type.is_float

    @property
    def n_blocks(self) -> int:
        """Blocks per row; for float weights, columns (what the kernels call n_blocks)."""
        return self.n_cols if self.is_float else self.n_cols // BLOCK

    @property
    def n_groups(self) -> int:
        return -(-self.n_rows // ROWS)

    def first_rows(self, n: int) -> Matrix:
        """A view of the first ``n`` rows, a multiple of ROWS, or of all where there are no more, or
        where they lie in slabs."""
        assert n % ROWS == 0
        assert self.n_experts == 1
        if self.slabs or n >= self.n_rows:
            return self
        return replace(self, n_rows=n, n_bytes=self.n_bytes * n // self.n_rows)

    @property
    def defines(self) -> tuple[str, ...]:
        """What kernels that read it are compiled with."""
        return self.type.defines


class RawMatrix(Struct, frozen=True):
    """A matrix as it lies in the file: ``data`` is its bytes, rows one after another.

    ``scale`` multiplies all of it, of types that have one (``has_matrix_scale``).
    """

    data: npt.NDArray[np.uint8]
    type: TensorType
    n_rows: int
    n_cols: int
    scale: float = 1.0

    def rows(self, begin: int, end: int) -> RawMatrix:
        """A view of some of the rows."""
        row_bytes = self.data.nbytes // self.n_rows
        data = self.data[begin * row_bytes : end * row_bytes]
        return replace(self, data=data, n_rows=end - begin)


class PackJob(Struct, frozen=True):
    """One part of a matrix that still has to be packed into its buffer."""

    matrix: Matrix
    part: RawMatrix
    row: int  # where its rows begin
    stride: int  # every so many groups of 16 rows ...
    offset: int  # ... from this one on


def place(
    device: Device, parts: Sequence[RawMatrix], *, paired: bool = False
) -> tuple[Matrix, list[PackJob]]:
    """Allocate one matrix for several of one type and width, below each other or paired.

    Its contents come with the jobs. Stacked parts but the last need a multiple of 16 rows.
    Raises ValueError otherwise. What does not fit into one buffer of the device is split.
    """
    first = parts[0]
    if any((p.type, p.n_cols) != (first.type, first.n_cols) for p in parts):
        raise ValueError("matrices of different types or widths cannot be packed together")
    _check_kernels(parts)
    if not paired and any(p.n_rows % ROWS for p in parts[:-1]):
        raise ValueError("a stacked matrix needs a multiple of 16 rows")
    n_rows = sum(p.n_rows for p in parts)
    n_groups = sum(-(-p.n_rows // ROWS) for p in parts)
    n_packed = n_groups
    if paired:
        n_groups = -(-n_groups // 4) * 4  # a unit of the kernels is two pairs
    if ranges := _slab_rows(device, first, n_groups, parts[0].n_rows if paired else n_rows):
        return _join(
            place(device, [part.rows(begin, end) for part in parts], paired=True)
            if paired
            else place(device, _stacked_rows(parts, begin, end))
            for begin, end in ranges
        )
    scales_at, n_bytes = first.type.packed_size(n_groups, first.n_cols)
    buffer = allocate(device, n_bytes)
    if n_groups > n_packed and not works_in_place(device):  # memory of the host comes with zeros
        fill_zero(device, buffer, n_bytes)
    matrix = Matrix(buffer, first.type, n_rows, first.n_cols, scales_at, n_bytes, paired)
    jobs, row = [], 0
    for i, part in enumerate(parts):
        stride, offset = (2, i) if paired else (1, 0)
        jobs += [PackJob(matrix, s, row + at, stride, offset) for at, s in _slices(part)]
        row += 0 if paired else part.n_rows
    return matrix, jobs


def _check_kernels(parts: Sequence[RawMatrix]) -> None:
    for part in parts:
        if part.type.packing is None:
            raise ValueError(f"no kernel for tensor type {part.type.name}")
        if part.scale != 1 and not part.type.has_matrix_scale:
            raise ValueError(f"{part.type.name} matrices with a scale of {part.scale:g}")


def place_experts(
    device: Device, first: Sequence[RawMatrix], second: Sequence[RawMatrix] = ()
) -> tuple[Matrix, list[PackJob]]:
    """Allocate one matrix of many equal ones, each a multiple of 16 rows (32 if paired).

    ``second`` has the matrices that are paired with those of ``first``. Raises ValueError.
    """
    example = first[0]
    if any(
        (p.type, p.n_rows, p.n_cols) != (example.type, example.n_rows, example.n_cols)
        for p in (*first, *second)
    ):
        raise ValueError("experts of different types or shapes")
    _check_kernels((*first, *second))
    paired = bool(second)
    if example.n_rows % (2 * ROWS if paired else ROWS):
        raise ValueError(f"experts of {example.n_rows} rows")
    n_rows = example.n_rows * (2 if paired else 1)
    n_groups = n_rows // ROWS * len(first)
    if ranges := _slab_rows(device, example, n_groups, example.n_rows):
        return _join(
            place_experts(
                device, [raw.rows(begin, end) for raw in first],
                [raw.rows(begin, end) for raw in second],
            )
            for begin, end in ranges
        )  # fmt: skip
    scales_at, n_bytes = example.type.packed_size(n_groups, example.n_cols)
    matrix = Matrix(
        allocate(device, n_bytes), example.type, n_rows, example.n_cols, scales_at, n_bytes,
        paired, len(first),
    )  # fmt: skip
    jobs = [
        PackJob(matrix, piece, e * example.n_rows + at, 2 if paired else 1, i)
        for i, parts in enumerate((first, second))
        for e, part in enumerate(parts)
        for at, piece in _slices(part)
    ]
    return matrix, jobs


def jobs_of(matrix: Matrix, raw: RawMatrix) -> list[PackJob]:
    """What packs a matrix, not paired and not of experts, again with other values."""
    return [
        PackJob(slab, piece, at, 1, 0)
        for row, slab in matrix.parts
        for at, piece in _slices(raw.rows(row, row + slab.n_rows))
    ]


def _slab_rows(
    device: Device, example: RawMatrix, n_groups: int, n_rows: int
) -> list[tuple[int, int]]:
    """Ranges of the ``n_rows`` rows of each of some matrices, which have ``n_groups`` groups
    together, such that a range of all fits into a buffer; empty if all of it does."""
    _, n_bytes = example.type.packed_size(n_groups, example.n_cols)
    if n_bytes <= device.max_allocation:
        return []
    per_row = n_bytes / n_rows
    step = max(int(device.max_allocation / per_row) // SLAB_ROWS, 1) * SLAB_ROWS
    if step >= n_rows:
        return []  # allocating says what the matter is
    return [(begin, min(begin + step, n_rows)) for begin in range(0, n_rows, step)]


def _stacked_rows(parts: Sequence[RawMatrix], begin: int, end: int) -> list[RawMatrix]:
    """Rows from ``begin`` to ``end`` of matrices that lie below each other."""
    found, row = list[RawMatrix](), 0
    for part in parts:
        first, last = max(begin - row, 0), min(end - row, part.n_rows)
        if first < last:
            found.append(part.rows(first, last))
        row += part.n_rows
    return found


def _join(placed: Iterable[tuple[Matrix, list[PackJob]]]) -> tuple[Matrix, list[PackJob]]:
    slabs, jobs = zip(*placed, strict=True)
    n_rows, n_bytes = (sum(getattr(slab, name) for slab in slabs) for name in ("n_rows", "n_bytes"))
    whole = replace(
        slabs[0], buffer=None, n_rows=n_rows, n_bytes=n_bytes, scales_at=0, slabs=tuple(slabs)
    )
    return whole, [job for some in jobs for job in some]


def _slices(part: RawMatrix) -> list[tuple[int, RawMatrix]]:
    """A matrix in pieces of whole groups of rows, with the row that each begins with."""
    row_bytes = part.data.nbytes // part.n_rows
    step = max(SLICE_BYTES // row_bytes // ROWS, 1) * ROWS
    return [
        (
            at,
            replace(part, data=part.data[at * row_bytes : end * row_bytes], n_rows=end - at),
        )
        for at in range(0, part.n_rows, step)
        for end in (min(at + step, part.n_rows),)
    ]


def pack_program(kind: TensorType) -> tuple[str, tuple[str, ...]]:
    """The source and defines of the program that packs matrices of a type."""
    return "quantization/pack.cl", kind.defines


def enqueue_job(device: Device, programs: Programs, job: PackJob) -> Any:
    """Begin to pack a part. What is returned, and the part's bytes, must stay until the queue has
    passed this point: where the device works in the host's memory it reads them where they lie."""
    matrix, part = job.matrix, job.part
    source, defines = pack_program(matrix.type)
    raw, begin = _raw_buffer(device, part.data)
    kernel = programs.bound(source, "pack", {
        "raw": Tensor(raw, part.data.shape, part.data.dtype), "begin": begin, "packed": matrix,
        "scales_at": matrix.scales_at, "n_rows": part.n_rows, "n_blocks": matrix.n_blocks,
        "row_offset": job.row, "group_stride": job.stride, "group_offset": job.offset,
        "scale": part.scale,
    }, defines)  # fmt: skip
    n_blocks, n_groups = -(-matrix.n_cols // BLOCK), -(-part.n_rows // ROWS)
    grid = (n_blocks, n_groups * (1 if device.is_simd else ROWS))
    # A CPU gains nothing by groups, and PoCL would compile the kernel anew for each of their sizes.
    local = (1, 1) if device.info.kind == "cpu" else None
    cl.enqueue_nd_range_kernel(device.queue, kernel, grid, local)
    return raw


def _raw_buffer(device: Device, data: npt.NDArray[np.uint8]) -> tuple[Any, int]:
    """A buffer with a part's bytes, and where in it they begin."""
    flags = cl.mem_flags.READ_ONLY
    if not works_in_place(device):
        return cl.Buffer(device.context, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=data), 0
    # Drivers use in place what begins at a page. The rest of the pages belongs to somebody else,
    # but it is there and nobody reads it.
    begin = data.ctypes.data % ALIGNMENT
    size = -(-(begin + data.nbytes) // ALIGNMENT) * ALIGNMENT
    pages = (ctypes.c_ubyte * size).from_address(data.ctypes.data - begin)
    return cl.Buffer(device.context, flags | cl.mem_flags.USE_HOST_PTR, hostbuf=pages), begin


def run_job(device: Device, programs: Programs, job: PackJob) -> None:
    """Pack a part, and wait."""
    raw = enqueue_job(device, programs, job)
    device.finish()
    raw.release()


def pack(
    device: Device, programs: Programs, parts: Sequence[RawMatrix], *, paired: bool = False
) -> Matrix:
    """``place`` and its jobs at once."""
    matrix, jobs = place(device, parts, paired=paired)
    for job in jobs:
        run_job(device, programs, job)
    return matrix


def as_integers(raw: RawMatrix) -> RawMatrix:
    """The same to be packed as integers, if it is of halves, which CPUs multiply at half the
    speed."""
    kind = INTEGERS_OF.get(raw.type.name)
    return raw if kind is None or raw.n_cols % BLOCK else replace(raw, type=kind)


def raw_matrix(data: npt.NDArray[np.uint8], type_name: str, n_rows: int, n_cols: int) -> RawMatrix:
    """A RawMatrix of a type given by name."""
    return RawMatrix(data, by_name(type_name), n_rows, n_cols)
