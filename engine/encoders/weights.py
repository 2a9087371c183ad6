"""The tensors of a projector file (GGUF architecture "clip"), placed at their first use.

A graph asks for what it needs by name, whatever the input's size, so the first graph of an
encoder decides what is loaded. Nothing here knows a projector type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.layers.feed_forward.experts import ExpertsWeights, load_experts
from gguf_serve.engine.recording.tensors import Linear, Part, TensorSource
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.quants import by_name
from gguf_serve.kernels.quantization.weights import Matrix, RawMatrix, as_integers, run_job

Floats = npt.NDArray[np.float32]
T = TypeVar("T")


class EncoderWeights:
    """What a projector file holds, on one device."""

    def __init__(self, gguf: GGUFFile, device: Device, programs: Programs) -> None:
        self._source = TensorSource(gguf, device)
        self._source.check_types()
        self._device, self._programs = device, programs
        self._kept: dict[tuple[object, ...], Any] = {}

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """In the file's order, columns first; ModelError if there is no such tensor."""
        return self._source.shape(name)

    def names(self, end: str) -> list[str]:
        """The names of the tensors that end so."""
        return [name for name in self._source.names() if name.endswith(end)]

    def floats(self, name: str) -> Floats:
        """A float tensor with its shape, rows first; ModelError if it is missing."""

        def read() -> Floats:
            found = self._source.floats(name)
            assert found is not None
            return found.reshape(shape[::-1])

        shape = self.shape(name)
        return self._keep(("floats", name), read)

    def vector(self, name: str) -> Tensor | None:
        """A float tensor on the device, None if the file has none of that name."""
        return self._keep(("vector", name), lambda: self._source.vector(name))

    def constant(self, key: str, make: Callable[[], Floats]) -> Tensor:
        """An array that is made once, on the device."""
        return self._keep(("constant", key), lambda: self._source.upload(make()))

    def linear(self, name: str) -> Linear:
        """``name``.weight with its bias. A tensor of more dimensions is a matrix of as many
        rows as its last one."""
        return self._keep(("linear", name), lambda: self._stack([self._part(name)])[0])

    def stacked(self, names: Sequence[str], rows: Sequence[int] | None = None) -> Sequence[Linear]:
        """Matrices side by side; ``rows``: the order in which each one's rows are taken."""

        def make() -> Sequence[Linear]:
            parts = [self._part(name) for name in names]
            return self._stack(parts if rows is None else [_reordered(p, rows) for p in parts])

        return self._keep(("stacked", *names), make)

    def one_of(self, name: str, i: int) -> Linear:
        """Matrix i of a tensor ``name``.weight of three dimensions."""

        def make() -> Sequence[Linear]:
            raw = self._source.raw(f"{name}.weight")
            n_rows = self.shape(f"{name}.weight")[1]
            return self._stack([Part(self._faster(raw.rows(i * n_rows, (i + 1) * n_rows)))])

        return self._keep(("one of", name, i), make)[0]

    def below_each_other(self, name: str) -> Matrix:
        """The matrices of a tensor ``name``.weight of two or three dimensions as one, whose rows
        can be looked up."""

        def make() -> Matrix:
            return self._packed(lambda: self._source.matrix(f"{name}.weight"))

        return self._keep(("below each other", name), make)

    def paired(self, gate: str, up: str) -> Linear:
        """Gate and up in one matrix; both need a bias or none."""
        return self._keep(
            ("paired", gate, up),
            lambda: self._packed(lambda: self._source.paired(self._part(gate), self._part(up))),
        )

    def experts(self, prefix: str, suffix: str) -> ExpertsWeights:
        """A set of experts; see load_experts()."""
        return self._keep(
            ("experts", prefix),
            lambda: self._packed(lambda: load_experts(self._source, prefix, suffix)),
        )

    def computed(
        self, key: str, make: Callable[[], Floats], bias: Callable[[], Floats] | None = None
    ) -> Linear:
        """A matrix that is made from others on the host, float32 [rows, columns]."""

        def place() -> Linear:
            raw = _raw(make(), "F32")
            return self._stack([Part(raw, None if bias is None else bias())])[0]

        return self._keep(("computed", key), place)

    def rearranged(self, name: str, arrange: Callable[[Floats], Floats], times: int = 1) -> Linear:
        """The values of ``name``.weight, rows first, as another matrix, of halves if they are such;
        with its bias so many times."""

        def place() -> Linear:
            whole = f"{name}.weight"
            kind = "F16" if self._source.raw(whole).type.name == "F16" else "F32"
            raw = self._faster(_raw(arrange(self.floats(whole)), kind))
            bias = self._bias(name, raw.n_rows // times)
            return self._stack([Part(raw, None if bias is None else np.tile(bias, times))])[0]

        return self._keep(("rearranged", name), place)

    def _part(self, name: str) -> Part:
        raw = self._source.raw(f"{name}.weight")
        n_rows = self.shape(f"{name}.weight")[-1]
        n_cols = raw.n_rows * raw.n_cols // n_rows
        whole = RawMatrix(raw.data, raw.type, n_rows, n_cols, raw.scale)
        return Part(self._faster(whole), self._bias(name, n_rows))

    def _bias(self, name: str, n_rows: int) -> Floats | None:
        """ModelError where it is not as long as there are rows."""
        bias = self._source.floats(f"{name}.bias")
        if bias is not None and len(bias) != n_rows:
            raise ModelError(f"{name}.bias has {len(bias)} values for {n_rows} rows")
        return bias

    def _faster(self, raw: RawMatrix) -> RawMatrix:
        """The same in the form that the device multiplies fastest."""
        return as_integers(raw) if self._device.is_simd else raw

    def _stack(self, parts: Sequence[Part]) -> Sequence[Linear]:
        return self._packed(lambda: self._source.stacked(parts))

    def _packed(self, make: Callable[[], T]) -> T:
        made = make()
        for job in self._source.jobs:
            run_job(self._device, self._programs, job)
        self._source.jobs.clear()
        return made

    def _keep(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = make()
        found: T = self._kept[key]
        return found


def _raw(values: Floats, kind: str) -> RawMatrix:
    """A matrix of the type F32 or F16."""
    data = np.ascontiguousarray(values, np.float16 if kind == "F16" else np.float32)
    return RawMatrix(data.view(np.uint8).reshape(-1), by_name(kind), *values.shape)


def _reordered(part: Part, rows: Sequence[int]) -> Part:
    raw, order = part.raw, np.asarray(rows)
    data = raw.data.reshape(raw.n_rows, -1)[order].reshape(-1)
    bias = None if part.bias is None else part.bias[order]
    return Part(RawMatrix(data, raw.type, raw.n_rows, raw.n_cols, raw.scale), bias)
