"""The tensors of a model file by name, placed on the device as layers ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.recording.adapters import Adapter, LowRank
from gguf_serve.engine.recording.low_rank import (
    LowRankMatrices,
    Reservation,
    Stack,
    float_raw,
    stacked,
)
from gguf_serve.engine.recording.scaled import with_scales_inside
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tensor import Tensor, upload
from gguf_serve.kernels.quantization.packing import BLOCK, ROWS
from gguf_serve.kernels.quantization.quants import SUPPORTED_TYPES
from gguf_serve.kernels.quantization.weights import (
    Matrix,
    PackJob,
    RawMatrix,
    as_integers,
    place,
    place_experts,
)
from gguf_serve.kernels.rows.norm import NormWeights

JOINED_BYTES = 1 << 20  # of parts that are copied into one, at most
INTEGER_TYPE = "I32"  # of tables, see TensorSource.integers
Floats = npt.NDArray[np.float32]
# Of what a matrix is made of: addresses in the open file, rows there, and their scale
Places = tuple[tuple[int, int, float], ...]


class Linear(Struct, frozen=True):
    """A matrix with its bias: (W x + b) * scale. ``offset`` is where its rows begin in the output,
    ``scale`` not 1 where the file has one beside the matrix (and b is divided by it)."""

    matrix: Matrix
    bias: Tensor | None = None
    offset: int = 0
    low_rank: LowRankMatrices | None = None
    scale: float = 1.0

    @property
    def reads_floats(self) -> set[bool]:
        """In which forms it reads its input: True for floats, False for quantized values."""
        return {self.matrix.is_float} | ({True} if self.low_rank is not None else set())


class Part(Struct, frozen=True):
    """A matrix of the file, or some of its rows, with their bias."""

    raw: RawMatrix
    bias: Floats | None = None
    updates: tuple[LowRank, ...] = ()

    @property
    def n_rows(self) -> int:
        return self.raw.n_rows

    @property
    def scale(self) -> float:
        """Of what the matrix yields: the file's, of types that do not keep it themselves."""
        return 1.0 if self.raw.type.has_matrix_scale else self.raw.scale

    @property
    def unscaled(self) -> Part:
        """The same without that scale."""
        if self.scale == 1:
            return self
        bias = None if self.bias is None else self.bias / np.float32(self.scale)
        return replace(self, raw=replace(self.raw, scale=1.0), bias=bias)

    def fits(self, other: Part) -> bool:
        """Whether both may be one matrix."""
        return self.raw.type == other.raw.type and self.scale == other.scale

    def joins(self, other: Part) -> bool:
        """Whether both had better be copied into one: they are small, and cannot be packed below
        each other."""
        mine, theirs = self.raw, other.raw
        return (
            (mine.type, mine.n_cols, mine.scale) == (theirs.type, theirs.n_cols, theirs.scale)
            and mine.data.nbytes + theirs.data.nbytes <= JOINED_BYTES
            and not (self.updates or other.updates)
        )

    def joined(self, other: Part) -> Part:
        """The rows of both, which ``joins`` allows."""
        raw, biases = self.raw, _biases([self, other])
        data = np.concatenate([raw.data, other.raw.data])
        joined = replace(raw, data=data, n_rows=raw.n_rows + other.raw.n_rows)
        return Part(joined, None if biases is None else np.concatenate(biases))

    def rows(self, begin: int, end: int) -> Part:
        bias = None if self.bias is None else self.bias[begin:end]
        updates = tuple(update.rows(begin, end) for update in self.updates)
        return Part(self.raw.rows(begin, end), bias, updates)


class TensorSource:
    """The file's tensors, and the packing jobs of the matrices that were asked for."""

    def __init__(
        self,
        gguf: GGUFFile,
        device: Device,
        unused: Sequence[str] = (),
        adapters: Sequence[Adapter] = (),
        lent: Mapping[Places, Matrix] = MappingProxyType({}),
        *,
        as_integers: bool = False,
    ) -> None:
        """``unused``: ends of the names of tensors that are as if they were not there; ``lent``:
        matrices that are on the device already, another source's ``placed``; ``as_integers``: so
        are halves packed that are multiplied."""
        self._as_integers = as_integers
        self._gguf = gguf
        self._adapters = adapters
        self.adapted: set[str] = set()  # tensors whose updates count
        self._device = device
        self._unused = tuple(unused)
        self.jobs: list[PackJob] = []
        self.reservations: list[Reservation] = []
        self._lent = lent
        self.placed: dict[Places, Matrix] = {}

    def _named(self, name: str) -> str:
        """Some converters leave out ".weight"."""
        bare = name.removesuffix(".weight")
        return bare if name not in self._gguf.tensors and bare in self._gguf.tensors else name

    def has(self, name: str) -> bool:
        return self._named(name) in self._gguf.tensors and not name.endswith(self._unused)

    def names(self) -> list[str]:
        return list(self._gguf.tensors)

    def check_types(self) -> None:
        for info in self._gguf.tensors.values():
            if info.type.name not in (*SUPPORTED_TYPES, INTEGER_TYPE):
                raise ModelError(
                    f"{self._gguf.path}: tensor {info.name} is of type {info.type.name}, which "
                    f"has no kernels yet; supported: {', '.join(SUPPORTED_TYPES)}"
                )

    def shape(self, name: str) -> tuple[int, ...]:
        """In the file's order: columns first. ModelError if there is no such tensor."""
        info = self._gguf.tensors.get(self._named(name))
        if info is None:
            raise ModelError(f"{self._gguf.path}: tensor {name} is missing")
        return info.shape

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        found = self.shape(name)
        if found != tuple(shape):
            raise ModelError(
                f"{self._gguf.path}: tensor {name} has shape {found}, not {tuple(shape)}"
            )

    def check_rows(self, name: str, n_rows: int, *, more: bool = False) -> None:
        """ModelError unless a matrix has so many rows (or, if allowed, more)."""
        found, shape = self.raw(name).n_rows, self.shape(name)
        if found != n_rows and not (more and found > n_rows):
            raise ModelError(
                f"{self._gguf.path}: tensor {name} has shape {shape}, not {(shape[0], n_rows)}"
            )

    def raw(self, name: str) -> RawMatrix:
        """A tensor as one matrix; one of three dimensions as matrices below each other."""
        shape = self.shape(name)
        n_rows = int(np.prod(shape[1:], dtype=np.int64))
        scales = self.floats(f"{name.removesuffix('.weight')}.scale")
        return RawMatrix(
            self._gguf.data(name), self._gguf.tensors[name].type, n_rows, shape[0],
            float(scales[0]) if scales is not None and len(scales) == 1 else 1.0,
        )  # fmt: skip

    def part(self, name: str, n_cols: int | None = None) -> Part:
        """The matrix ``name``.weight with its bias; ModelError if it has not n_cols columns."""
        raw = self.raw(f"{name}.weight")
        raw = as_integers(raw) if self._as_integers else raw
        shape = self.shape(f"{name}.weight")
        if n_cols is not None and raw.n_cols != n_cols:
            raise ModelError(
                f"{self._gguf.path}: tensor {name}.weight has shape {shape}, not "
                f"{(n_cols, *shape[1:])}"
            )
        return Part(raw, self.floats(f"{name}.bias"), self._updates(f"{name}.weight"))

    def embedding_updates(self, name: str) -> LowRankMatrices | None:
        """The updates of a matrix whose rows are looked up."""
        updates = self._updates(name)
        if not updates:
            return None
        a = np.concatenate([update.a for update in updates], axis=1)
        b = np.concatenate([update.b for update in updates], axis=1)
        owner = np.repeat([u.index for u in updates], [u.a.shape[1] for u in updates])
        padding = -len(owner) % BLOCK
        a, b = (np.pad(matrix, ((0, 0), (0, padding))) for matrix in (a, b))
        owners = self.upload(np.pad(owner, (0, padding)).astype(np.int32))
        return LowRankMatrices(self.float_matrix(a), self.float_matrix(b), owners)

    def _updates(self, name: str) -> tuple[LowRank, ...]:
        found = [(i, a.updates[name]) for i, a in enumerate(self._adapters) if name in a.updates]
        self.adapted |= {name} if found else set()
        return tuple(
            LowRank(i, *update, reserved=name if self._adapters[i].is_reserved else "")
            for i, update in found
        )

    def floats(self, name: str) -> Floats | None:
        """A float tensor as a flat array, or None if the file has none of that name."""
        if not self.has(name):
            return None
        return self._gguf.floats(self._named(name))

    def integers(self, name: str) -> npt.NDArray[np.int32] | None:
        """A tensor of integers as a flat array, or None if the file has none of that name."""
        if not self.has(name):
            return None
        name = self._named(name)
        kind = self._gguf.tensors[name].type.name
        if kind != INTEGER_TYPE:
            raise ModelError(
                f"{self._gguf.path}: tensor {name} is of type {kind}, expected {INTEGER_TYPE}"
            )
        return self._gguf.data(name).view(np.int32)

    def vector(self, *names: str) -> Tensor | None:
        """The first of these float tensors that the file has, flat; None if it has none."""
        arrays = (self.floats(name) for name in names)
        return next((self.upload(array) for array in arrays if array is not None), None)

    def optional_norm(self, name: str, eps: float) -> NormWeights | None:
        """An RMS norm that some layers have."""
        weight = self.vector(f"{name}.weight")
        return None if weight is None else NormWeights(weight, eps)

    def table(self, name: str) -> Tensor | None:
        """A float tensor with its shape, rows first; None if the file has none."""
        array = self.floats(name)
        return None if array is None else self.upload(array.reshape(self.shape(name)[::-1]))

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        return upload(self._device, array)

    def matrix(self, name: str) -> Matrix:
        return self._place([self.raw(name)])

    def linear(self, name: str, n_cols: int | None = None) -> Linear:
        return self._linear([self.part(name, n_cols)])

    def _linear(self, parts: Sequence[Part], offset: int = 0) -> Linear:
        """Matrices of one type and one scale below each other."""
        plain = [part.unscaled for part in parts]
        matrix, biases = self._place([part.raw for part in plain]), _biases(plain)
        bias = None if biases is None else self.upload(np.concatenate(biases))
        return Linear(matrix, bias, offset, self._low_rank(plain), parts[0].scale)

    def _low_rank(self, parts: Sequence[Part]) -> LowRankMatrices | None:
        """The updates of matrices below each other."""
        stack = _stacked_updates(parts)
        if stack is None:
            return None
        a, b = (self.float_matrix(each) for each in stack.matrices({}))
        found = LowRankMatrices(a, b, self.upload(stack.owner))
        if any(update.reserved for update, _ in stack.updates):
            self.reservations.append(Reservation(found, stack))
        return found

    def _low_rank_experts(self, parts: Sequence[Part]) -> LowRankMatrices | None:
        """The updates of experts' matrices, of which all have the same adapters'."""
        found = [each for each in (_stacked_updates([part]) for part in parts) if each is not None]
        if not found:
            return None
        pairs = [stack.matrices({}) for stack in found]
        a, b = (
            self.expert_linear([Part(float_raw(pair[i])) for pair in pairs]).matrix for i in (0, 1)
        )
        return LowRankMatrices(a, b, self.upload(found[0].owner))

    def float_matrix(self, array: Floats) -> Matrix:
        """A matrix that is not in the file."""
        return self._allocate([float_raw(array)])

    def optional_linear(self, name: str) -> Linear | None:
        return self.linear(name) if self.has(f"{name}.weight") else None

    def stacked(self, parts: Sequence[Part]) -> tuple[Linear, ...]:
        """Matrices whose outputs lie side by side; neighbours that fit become one matrix."""
        runs: list[list[Part]] = []
        for part in parts:
            last = runs[-1][-1] if runs else None
            if last is not None and last.fits(part) and last.n_rows % ROWS == 0:
                runs[-1].append(part)
            elif last is not None and last.joins(part):
                runs[-1][-1] = last.joined(part)
            else:
                runs.append([part])
        linears, offset = [], 0
        for run in runs:
            linears.append(self._linear(run, offset))
            offset += linears[-1].matrix.n_rows
        return tuple(linears)

    def paired(self, gate: Part, up: Part) -> Linear:
        """Gate and up, which fit, in one matrix, for kernels.matrix.matmul.glu."""
        matrix = self._place([gate.raw, up.raw], paired=True)
        biases = _biases([gate, up])
        return Linear(matrix, None if biases is None else self.upload(_paired(biases)))

    def keeps_scales(self, name: str) -> bool:
        """Whether a matrix keeps the scale beside it."""
        return self._gguf.tensors[self._named(f"{name}.weight")].type.has_matrix_scale

    def experts(self, name: str, share: int = 0, of: int = 1, *, scaled: bool = True) -> list[Part]:
        """The matrices of a three-dimensional tensor; of each, the share-th of ``of`` parts.
        ``scaled``: with the scales beside them."""
        raw = replace(self.raw(f"{name}.weight"), scale=1.0)
        n = self.shape(f"{name}.weight")[-1]
        bias = self.floats(f"{name}.bias")
        rows = raw.n_rows // n
        starts = [e * rows + share * (rows // of) for e in range(n)]
        beside = self.floats(f"{name}.scale") if scaled else None
        scales = np.broadcast_to(np.ones(1, np.float32) if beside is None else beside, n)
        updates = self._updates(f"{name}.weight")
        begin, size = share * (rows // of), rows // of
        parts = [
            replace(
                Part(replace(raw, scale=float(scale)), bias).rows(start, start + size),
                updates=tuple(update.expert(e, begin, begin + size) for update in updates),
            )
            for e, (start, scale) in enumerate(zip(starts, scales, strict=True))
        ]
        raws = with_scales_inside(name, [part.raw for part in parts])
        return [replace(part, raw=inside) for part, inside in zip(parts, raws, strict=True)]

    def by_kind(self, prefix: str, name: str, image_name: str | None = None) -> Linear:
        """The matrix for text and the one for images, for engine.recording.image_experts;
        ModelError for an adapter of it, which would change images' tokens too."""
        if self._updates(f"{prefix}{name}.weight"):
            raise ModelError(
                f"adapters of {prefix}{name} are not supported, beside which the model has another "
                "matrix for images"
            )
        return self.expert_linear(
            [self.part(f"{prefix}{name}"), self.part(f"{prefix}vis_{image_name or name}")]
        )

    def expert_linear(self, first: Sequence[Part], second: Sequence[Part] = ()) -> Linear:
        """Experts' matrices in one, paired if there are two of each; ModelError for sizes or
        types that the kernels cannot take."""
        try:
            matrix, jobs = place_experts(
                self._device, [p.raw for p in first], [p.raw for p in second]
            )
        except ValueError as error:
            raise ModelError(f"{self._gguf.path}: {error}") from error
        self.jobs += jobs
        pairs = zip(first, second, strict=True) if second else ((part,) for part in first)
        biases = [_biases(pair) for pair in pairs]
        low_rank = None if second else self._low_rank_experts(first)
        if biases[0] is None:
            return Linear(matrix, low_rank=low_rank)
        rows = [_paired(b) if second else b[0] for b in biases if b is not None]
        by_slab = [array[row : row + slab.n_rows] for row, slab in matrix.parts for array in rows]
        return Linear(matrix, self.upload(np.concatenate(by_slab)), low_rank=low_rank)

    def _place(self, raws: Sequence[RawMatrix], *, paired: bool = False) -> Matrix:
        """The matrix of the file's rows, which may be there already."""
        if any(raw.data.flags.owndata for raw in raws):  # joined: they have no place in the file
            return self._allocate(raws, paired=paired)
        places = tuple((raw.data.ctypes.data, raw.n_rows, raw.scale) for raw in raws)
        if (lent := self._lent.get(places)) is not None and lent.paired == paired:
            return lent
        self.placed[places] = self._allocate(raws, paired=paired)
        return self.placed[places]

    def _allocate(self, raws: Sequence[RawMatrix], *, paired: bool = False) -> Matrix:
        try:
            matrix, jobs = place(self._device, raws, paired=paired)
        except ValueError as error:
            raise ModelError(f"{self._gguf.path}: {error}") from error
        self.jobs += jobs
        return matrix


def _stacked_updates(parts: Sequence[Part]) -> Stack | None:
    """Of matrices below each other."""
    return stacked([(part.n_rows, part.updates) for part in parts], parts[0].raw.n_cols)


def _biases(parts: Sequence[Part]) -> list[Floats] | None:
    """The biases of matrices, zeros where one has none; None if none has one."""
    if all(part.bias is None for part in parts):
        return None
    return [np.zeros(part.n_rows, np.float32) if part.bias is None else part.bias for part in parts]


def _paired(biases: Sequence[Floats]) -> Floats:
    """Biases in the order of a paired matrix: groups of 16 of the one, then of the other."""
    n_groups = -(-len(biases[0]) // (2 * ROWS)) * 2
    result = np.zeros((n_groups, 2, ROWS), np.float32)
    for i, bias in enumerate(biases):
        padded = np.zeros(n_groups * ROWS, np.float32)
        padded[: len(bias)] = bias
        result[:, i] = padded.reshape(n_groups, ROWS)
    return result.reshape(-1)
