"""Launches of an encoder for one size of input, recorded once and replayed for every input.

Unlike a decoder's step, everything but the input itself is known when the graph is recorded:
numbers of rows, positions, which patches attend to each other. They are constants here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.encoders.weights import EncoderWeights, Floats
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.kernels.attention import attention as attn
from gguf_serve.kernels.attention.attention import AttentionInputs, Mask
from gguf_serve.kernels.attention.kv import PAGE, KVPages, KVShape, LayerKV
from gguf_serve.kernels.attention.rope import QKNorm, QKVRows, RopeStyle, qkv_rows, rope_kv
from gguf_serve.kernels.matrix.activate import activate
from gguf_serve.kernels.matrix.matmul import glu, matmul
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import N_COUNTS, Counts, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, empty, read, upload, write
from gguf_serve.kernels.quantization.activations import Activations, activations
from gguf_serve.kernels.rows.gather import gather, mix
from gguf_serve.kernels.rows.norm import COPY, NormWeights, norm

TILE = 32  # rows that share a pass over the weights
Ints = npt.NDArray[np.int32]
Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Rows:
    """float32 [n, width] on the device."""

    tensor: Tensor

    @property
    def n(self) -> int:
        return self.tensor.shape[0]

    @property
    def width(self) -> int:
        return self.tensor.shape[1]

    def reshaped(self, n: int) -> Rows:
        """The same values in ``n`` rows."""
        return self._view(n, self.n * self.width // n)

    def first(self, n: int) -> Rows:
        """The first ``n`` rows."""
        return self._view(n, self.width)

    def _view(self, n: int, width: int) -> Rows:
        return Rows(Tensor(self.tensor.buffer, (n, width), self.tensor.dtype))


@dataclass(frozen=True, slots=True)
class Groups:
    """Consecutive rows that attend to each other and to no others, and where K and V lie."""

    slots: Tensor
    inputs: AttentionInputs
    n_pages: int
    n_tiles: int


@dataclass(frozen=True, slots=True)
class Heads:
    """Shape and scale of attention, and what is done to the heads of Q and K."""

    n: int
    size: int
    scale: float
    norm: QKNorm | None = None
    rope: Tensor | None = None  # cos and sin: float32 [n, 2, size / 2]
    neox: bool = True  # pairs (i, i + size / 2), else (2i, 2i + 1)


class Graph:
    """Records operations on rows; ``run`` replays them."""

    def __init__(self, weights: EncoderWeights, device: Device, programs: Programs) -> None:
        self.weights = weights
        self._device, self._programs = device, programs
        self._segments: list[tuple[Tape, Counts]] = []  # operations of the same number of rows
        self._counts: dict[int, Tensor] = {}
        self._pages: dict[tuple[int, KVShape], LayerKV] = {}
        self._groups: dict[tuple[int, ...], Groups] = {}
        self._free: dict[tuple[int, ...], list[Tensor]] = {}
        self._scopes: list[list[Tensor]] = []
        self._inputs: list[Tensor] = []
        self._identities: dict[int, Tensor] = {}

    # --- memory ---

    def input(self, n: int, width: int) -> Rows:
        """Rows that ``run`` is given, in the order of the calls."""
        rows = Rows(empty(self._device, (n, width)))
        self._inputs.append(rows.tensor)
        return rows

    def constant(self, values: npt.ArrayLike) -> Rows:
        """float32 [n, width] that never changes."""
        return Rows(upload(self._device, np.ascontiguousarray(values, np.float32)))

    def constant_rope(self, table: Floats) -> Tensor:
        """cos and sin of a rotation, float32 [n, 2, pairs]."""
        return upload(self._device, table)

    def index(self, values: npt.ArrayLike) -> Tensor:
        return upload(self._device, np.ascontiguousarray(values, np.int32))

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Rows made inside are scratch memory, which later scopes use again."""
        self._scopes.append([])
        yield
        for tensor in self._scopes.pop():
            self._free.setdefault(tensor.shape, []).append(tensor)

    def rows(self, n: int, width: int) -> Rows:
        free = self._free.get((n, width)) if self._scopes else None
        tensor = free.pop() if free else empty(self._device, (n, width))
        if self._scopes:
            self._scopes[-1].append(tensor)
        return Rows(tensor)

    def _tape(self, n: int, n_tiles: int = 0) -> Tape:
        counts = (n, n, n_tiles, 1, 1)
        if not self._segments or self._segments[-1][1] != counts:
            self._segments.append((Tape(self._device, self._programs), counts))
        return self._segments[-1][0]

    def _count(self, n: int) -> Tensor:
        if n not in self._counts:
            self._counts[n] = upload(self._device, np.full(N_COUNTS, n, np.int32))
        return self._counts[n]

    # --- operations ---

    def linear(
        self, x: Rows, layer: Linear, *, add_to: Rows | None = None, into: Rows | None = None
    ) -> Rows:
        """x W^T + b, added to ``add_to`` or written to columns of ``into`` if given."""
        out = add_to or into or self.rows(x.n, layer.matrix.n_rows)
        matmul(
            self._tape(x.n), layer.matrix, self._operand(x, layer), out.tensor, self._count(x.n),
            tile=TILE, add=add_to is not None, bias=layer.bias, out_offset=layer.offset,
        )  # fmt: skip
        return out

    def side_by_side(self, x: Rows, layers: Sequence[Linear]) -> Rows:
        """The outputs of several matrices in one row."""
        out = self.rows(x.n, sum(layer.matrix.n_rows for layer in layers))
        for layer in layers:
            self.linear(x, layer, into=out)
        return out

    def gated(self, x: Rows, pair: Linear, activation: str) -> Rows:
        """activation(gate x) * (up x) for a matrix of both."""
        out = self.rows(x.n, pair.matrix.n_rows // 2)
        glu(
            self._tape(x.n), pair.matrix, self._operand(x, pair),
            Activations(out.width, out.tensor), self._count(x.n), activation=activation, tile=TILE,
            bias=pair.bias,
        )  # fmt: skip
        return out

    def _operand(self, x: Rows, layer: Linear) -> Activations:
        """Rows as the matrix wants them: integers for a quantized one."""
        values = Activations(x.width, x.tensor)
        if layer.matrix.is_float:
            return values
        codes = activations(self._device, x.n, x.width, quantized=True)
        norm(self._tape(x.n), x.tensor, COPY, codes)
        return codes

    def norm(self, x: Rows, weights: NormWeights, groups: int = 1) -> Rows:
        """Each row normalized, or each of ``groups`` equal parts of it by itself."""
        out = self.rows(x.n, x.width)
        norm(self._tape(x.n), x.tensor, weights, Activations(x.width, out.tensor), groups=groups)
        return out

    def activate(self, x: Rows, activation: str, times: Rows | None = None) -> Rows:
        """activation(x), times other rows if given."""
        out = self.rows(x.n, x.width)
        activate(
            self._tape(x.n), x.tensor, Activations(x.width, out.tensor), activation=activation,
            y=None if times is None else times.tensor,
        )  # fmt: skip
        return out

    def gather(self, x: Rows, index: npt.ArrayLike, *, by_channel: bool = False) -> Rows:
        """Rows of x side by side, or interleaved value by value; index [n, taps], negative for
        zeros."""
        taps = self.index(index)
        out = self.rows(taps.shape[0], x.width * taps.shape[1])
        gather(self._tape(out.n), x.tensor, taps, out.tensor, by_channel=by_channel)
        return out

    def mixed(
        self,
        x: Rows,
        index: npt.ArrayLike,
        weights: Floats | None = None,
        *,
        add_to: Rows | None = None,
    ) -> Rows:
        """Sums of rows of x; weights [taps, width] or of index's shape [n, taps]."""
        taps = self.index(index)
        out = add_to or self.rows(taps.shape[0], x.width)
        factors = None if weights is None else self.constant(weights).tensor
        mix(self._tape(out.n), x.tensor, taps, out.tensor, weights=factors, add=add_to is not None)
        return out

    def add(self, x: Rows, y: Rows, scale: Tensor | None = None) -> None:
        """x += y, each column times ``scale`` [1, width] if given."""
        tape = self._tape(x.n)
        mix(tape, y.tensor, self._identity(x.n), x.tensor, weights=scale, add=True)

    def bounded(self, x: Rows, bounds: Bounds) -> Rows:
        """x within bounds."""
        out = self.rows(x.n, x.width)
        mix(self._tape(x.n), x.tensor, self._identity(x.n), out.tensor, bounds=bounds)
        return out

    def copy(self, x: Rows) -> Rows:
        out = self.rows(x.n, x.width)
        self.place(x, out, 0)
        return out

    def place(self, x: Rows, into: Rows, column: int) -> None:
        """Write x into the columns of wider rows from ``column`` on."""
        target = Activations(x.width, into.tensor)
        norm(self._tape(x.n), x.tensor, COPY, target, out_offset=column)

    def _identity(self, n: int) -> Tensor:
        if n not in self._identities:
            self._identities[n] = self.index(np.arange(n)[:, None])
        return self._identities[n]

    # --- attention ---

    def groups(self, lengths: Sequence[int], queries: int) -> Groups:
        """Groups of so many consecutive rows, in tiles of at most ``queries`` rows."""
        key = (queries, *lengths)
        if key not in self._groups:
            self._groups[key] = self._make_groups(lengths, queries)
        return self._groups[key]

    def _make_groups(self, lengths: Sequence[int], queries: int) -> Groups:
        n, n_pages = sum(lengths), [-(-length // PAGE) for length in lengths]
        first_pages = np.cumsum([0, *n_pages])
        tables = np.zeros((len(lengths), max(n_pages)), np.int32)
        slots, tiles, row = [], [], 0
        for i, length in enumerate(lengths):
            tables[i, : n_pages[i]] = np.arange(first_pages[i], first_pages[i + 1])
            slots.append(first_pages[i] * PAGE + np.arange(length))
            starts = np.arange(0, length, queries)
            counts = np.minimum(queries, length - starts)
            same = np.full(len(starts), i), np.full(len(starts), length)
            tiles.append(np.stack([starts + row, counts, *same], axis=1))
            row += length
        all_tiles = np.concatenate(tiles)
        inputs = AttentionInputs(
            self.index(all_tiles), self.index(np.zeros(n)), self.index(tables), self._count(n)
        )
        slots_ = self.index(np.concatenate(slots))
        return Groups(slots_, inputs, int(first_pages[-1]), len(all_tiles))

    def attention(
        self, q: Rows, k: Rows | None, v: Rows | None, heads: Heads, lengths: Sequence[int]
    ) -> Rows:
        """Attention inside groups of rows; k and v None: q has them all, side by side."""
        shape = KVShape(heads.n, heads.size, heads.size)
        queries = attn.tile_queries(self._device, heads.n, heads.n)
        groups = self.groups(tuple(lengths), queries)
        cache = self._cache(groups.n_pages, shape)
        rows = (
            qkv_rows(q.tensor, heads.n, shape)
            if k is None or v is None
            else QKVRows(q.tensor, k.tensor, v.tensor)
        )
        rope_kv(
            self._tape(q.n, groups.n_tiles), rows, heads.n, cache, heads.rope, groups.slots,
            style=RopeStyle(heads.size, heads.neox), scale=heads.scale, norm=heads.norm,
        )  # fmt: skip
        return self._attend(q, heads, cache, groups.inputs, groups.n_tiles, queries)

    def cross_attention(self, q: Rows, k: Rows, v: Rows, heads: Heads) -> Rows:
        """Every row of q attends to all rows of k and v."""
        shape = KVShape(heads.n, heads.size, heads.size)
        queries = attn.tile_queries(self._device, heads.n, heads.n)
        keys, mine = self.groups((k.n,), queries), self.groups((q.n,), queries)
        cache = self._cache(keys.n_pages, shape)
        # Q has other rows than K and V, so it is scaled beside unused keys of its own.
        unused = self._cache(mine.n_pages, KVShape(heads.n, heads.size, heads.size), "unused")
        for rows, place, source, groups in ((q, unused, q, mine), (k, cache, v, keys)):
            qkv = QKVRows(rows.tensor, rows.tensor, source.tensor)
            scale = heads.scale if rows is q else 1.0
            rope_kv(
                self._tape(rows.n), qkv, heads.n, place, None, groups.slots,
                style=RopeStyle(heads.size, True), scale=scale,
            )  # fmt: skip
        tiles = np.array(
            [(at, min(queries, q.n - at), 0, k.n) for at in range(0, q.n, queries)], np.int32
        )
        inputs = AttentionInputs(
            self.index(tiles), mine.inputs.positions, keys.inputs.tables, self._count(q.n)
        )
        return self._attend(q, heads, cache, inputs, len(tiles), queries)

    def _attend(
        self, q: Rows, heads: Heads, cache: LayerKV, inputs: AttentionInputs, n_tiles: int,
        queries: int,
    ) -> Rows:  # fmt: skip
        out = self.rows(q.n, heads.n * heads.size)
        attn.attention(
            self._tape(q.n, n_tiles), q.tensor, heads.n, cache, inputs,
            Activations(out.width, out.tensor), Mask(bidirectional=True), queries=queries,
        )  # fmt: skip
        return out

    def _cache(self, n_pages: int, shape: KVShape, use: str = "") -> LayerKV:
        key = (n_pages, shape) if not use else (-n_pages, shape)
        if key not in self._pages:
            pages = KVPages(self._device, [shape], n_pages, "f32", "f32")
            self._pages[key] = pages.layers[0]
        return self._pages[key]

    # --- replay ---

    def run(self, inputs: Sequence[npt.NDArray[Any]], out: Rows) -> Floats:
        """The rows ``out`` for these inputs, float32 [n, width]; waits for the device."""
        for tensor, values in zip(self._inputs, inputs, strict=True):
            write(self._device, tensor, np.ascontiguousarray(values, np.float32), wait=True)
        for tape, counts in self._segments:
            tape.run(counts)
        result: Floats = read(out.tensor, None, self._device.queue)
        return result
