"""The language that encoders are written in: every layer's verbs, and those of what moves between
rows; and the replay of what was said for one size of input.

    x = g.add(x, g.linear(g.attention(*rows, heads, lengths), output))

Unlike a decoder's step, everything but the input itself is known when an encoder is recorded:
numbers of rows, positions, which patches attend to each other. They are constants here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.encoders.weights import EncoderWeights, Floats
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.recording.attention_verbs import AttentionVerbs, Cache, Rotation
from gguf_serve.engine.recording.expert_verbs import ExpertVerbs
from gguf_serve.engine.recording.memory import Layout, shared_blocks
from gguf_serve.engine.recording.planning import plan
from gguf_serve.engine.recording.rows import Emission, Launch, Rows, Value
from gguf_serve.engine.recording.step import PROMPT_TILE, Step, Workspace, mode_of
from gguf_serve.engine.recording.verbs import carried
from gguf_serve.kernels.attention.attention import AttentionInputs, Mask, Scratch, tile_queries
from gguf_serve.kernels.attention.kv import PAGE, KVPages, KVShape, LayerKV
from gguf_serve.kernels.attention.relative import relative_attention
from gguf_serve.kernels.attention.rope import QKNorm, RopeStyle
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import N_COUNTS, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, read, upload, write
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.rows.gather import gather, mix
from gguf_serve.kernels.rows.norm import COPY, NormWeights
from gguf_serve.kernels.rows.snake import snake
from gguf_serve.kernels.rows.softmax import softmax

ALL = Mask(bidirectional=True)
Bounds = tuple[float, float]


class Heads(Struct, frozen=True):
    """Shape and scale of attention, and what is done to the heads of Q and K."""

    n: int
    size: int
    scale: float
    norm: QKNorm | None = None
    rope: Tensor | None = None  # cos and sin: float32 [n, 2, size / 2]
    neox: bool = True  # pairs (i, i + size / 2), else (2i, 2i + 1)
    n_kv: int = 0  # heads of K and V if they are fewer
    turned: int = 0  # values that rope turns, if not all
    value: int = 0  # values of a head of V, if they are fewer

    @property
    def shape(self) -> KVShape:
        return KVShape(self.n_kv or self.n, self.size, self.value or self.size)

    @property
    def rotation(self) -> Rotation:
        return Rotation(RopeStyle(self.turned or self.size, self.neox), self.scale, self.norm)


class CountedRows(Struct, frozen=True):
    """The surroundings (step.py) of launches for ``n`` rows."""

    device: Device
    workspace: Workspace
    counts: Tensor
    split: Scratch | None = None
    plain: Scratch | None = None

    @classmethod
    def of(cls, device: Device, workspace: Workspace, n: int) -> CountedRows:
        counts = workspace.constant(
            ("counts", n), lambda: upload(device, np.full(N_COUNTS, n, np.int32))
        )
        return cls(device, workspace, counts)

    def queries(self, n_heads: int, n_kv: int) -> int:
        return tile_queries(self.device, n_heads, n_kv)


class Graph(AttentionVerbs, ExpertVerbs):
    """What an encoder's function is given to say what is done; ``run`` replays it."""

    def __init__(self, weights: EncoderWeights, device: Device, programs: Programs) -> None:
        self._workspace = Workspace(device, 0)
        super().__init__([CountedRows.of(device, self._workspace, 0)])
        self.weights = weights
        self._tape = Tape(device, programs)
        self._inputs: list[Value] = []
        self._pages: dict[tuple[int, KVShape, str], LayerKV] = {}
        self._given: list[Tensor] = []
        self._out: Tensor | None = None

    # --- what is given ---

    def input(self, n: int, width: int) -> Rows:
        """Rows that ``run`` is given, in the order of the calls."""
        rows = self.rows(width, n=n)
        self._inputs.append(rows.value)
        return rows

    def constant(self, values: npt.ArrayLike) -> Rows:
        """float32 [n, width] that never changes."""
        tensor = upload(self.device, np.ascontiguousarray(values, np.float32))
        n, width = tensor.shape
        return Value(width, n=n, memory=tensor).rows

    def constant_rope(self, table: Floats) -> Tensor:
        """cos and sin of a rotation, float32 [n, 2, pairs]."""
        return upload(self.device, table)

    def _index(self, values: npt.ArrayLike) -> Tensor:
        """int32 of that shape, the same for the same values."""
        array = np.ascontiguousarray(values, np.int32)
        key = ("index", array.shape, array.tobytes())
        return self._workspace.constant(key, lambda: upload(self.device, array))

    def _whole(self, x: Rows) -> Rows:
        """Constants have no other form than floats."""
        return super()._whole(x if x.value.memory is None else self.copied(x))

    # --- what moves between rows ---

    def gather(self, x: Rows, index: npt.ArrayLike, *, by_channel: bool = False) -> Rows:
        """Rows of x side by side, or interleaved value by value; index [n, taps], negative for
        zeros."""
        x, taps = self.alone(x), self._index(index)
        out = self.rows(x.width * taps.shape[1], n=taps.shape[0])

        def run(e: Emission) -> None:
            gather(e.tape, e.floats(x), taps, e.floats(out), by_channel=by_channel)

        self.launch(run, reads=[x], writes=[out])
        return out

    def mixed(
        self,
        x: Rows,
        index: npt.ArrayLike,
        weights: Floats | None = None,
        *,
        add_to: Rows | None = None,
    ) -> Rows:
        """Sums of rows of x, added to other rows if these are given; weights [taps, width] or of
        index's shape [n, taps]."""
        x, taps = self.alone(x), self._index(index)
        factors = None if weights is None else upload(self.device, weights)
        if add_to is not None:
            return self._sum(add_to, x, taps, factors)
        out = self.rows(x.width, n=taps.shape[0])

        def run(e: Emission) -> None:
            mix(e.tape, e.floats(x), taps, e.floats(out), weights=factors)

        self.launch(run, reads=[x], writes=[out])
        return out

    def add(self, x: Rows, y: Rows, *, scale: float | Tensor = 1.0) -> Rows:
        """x + y * scale, which may be one for each column; one row y is added to all. ModelError
        where these have not as many values."""
        widths = {x.width, y.width, scale.shape[-1] if isinstance(scale, Tensor) else x.width}
        if len(widths) > 1:
            raise ModelError(f"rows of {sorted(widths)} values are added, or scaled by them")
        if not isinstance(scale, Tensor) and x.n == y.n:
            return super().add(self.alone(x), self.alone(y), scale=scale)
        index = np.arange(x.count) if x.n == y.n else np.zeros(x.count)
        factors = None
        if isinstance(scale, Tensor):
            factors = Tensor(scale.buffer, (1, x.width), scale.dtype)
        return self._sum(x, self.alone(y), self._index(index[:, None]), factors)

    def _sum(self, x: Rows, y: Rows, taps: Tensor, factors: Tensor | None) -> Rows:
        """x plus sums of rows of y, written over x where nobody reads it afterwards."""
        x = self.alone(x)
        out = self.rows(x.width, n=x.n)

        def run(e: Emission) -> None:
            mix(e.tape, e.floats(y), taps, carried(e, x, out), weights=factors, add=True)

        self.launch(run, reads=[x, y], writes=[out], over=x if x.value is not y.value else None)
        return out

    def side_by_side(self, parts: Sequence[Rows]) -> Rows:
        """Columns of several rows in one."""
        out = self.rows(sum(part.width for part in parts), n=parts[0].n)
        for part, place in zip(parts, out.split(*(part.width for part in parts)), strict=True):
            self.copy(part, place)
        return out

    def norm(self, x: Rows, weights: NormWeights, *, groups: int = 1) -> Rows:
        """See Verbs.norm; ModelError where the weights are not as many as the values."""
        for vector in (weights.weight, weights.bias):
            if vector is not None and vector.shape[-1] not in (x.width, x.width // groups):
                raise ModelError(f"a norm of {vector.shape[-1]} weights for rows of {x.width}")
        return super().norm(x, weights, groups=groups)

    def bounded(self, x: Rows, bounds: Bounds) -> Rows:
        """x within bounds."""
        x = self.alone(x)
        each, out = self._index(np.arange(x.count)[:, None]), self.rows(x.width, n=x.n)

        def run(e: Emission) -> None:
            mix(e.tape, e.floats(x), each, e.floats(out), bounds=bounds)

        self.launch(run, reads=[x], writes=[out], over=x)
        return out

    def alone(self, x: Rows) -> Rows:
        """Rows with nothing beside them."""
        return x if x.width == x.row else self.norm(x, COPY)

    # --- attention ---

    def attention(
        self, q: Rows, k: Rows, v: Rows, heads: Heads, lengths: Sequence[int], mask: Mask = ALL,
        *, seen: int = 0,
    ) -> Rows:  # fmt: skip
        """Attention inside groups of so many consecutive rows; ``seen``: the first rows, which all
        see (Mask.together)."""
        groups = self._groups(tuple(lengths), heads, mask, seen=seen)
        self.rope(q, k, v, heads.n, groups, heads.rotation)
        return self.attend(q, heads.n, groups, mask)

    def continued_attention(
        self, q: Rows, k: Rows, v: Rows, heads: Heads, start: int, pages: LayerKV
    ) -> Rows:
        """Attention of rows at the places from ``start`` on to those before them and to themselves:
        ``pages`` have K and V of the places before, where another graph has left them."""
        n = q.count
        places, tiles = start + np.arange(n), self._tiles([(0, n, 0, start + n)], heads)
        paging = AttentionInputs(
            tiles, self._index(places), self._index(np.arange(-(-(start + n) // PAGE))[None]),
            CountedRows.of(self.device, self._workspace, n).counts,
        )  # fmt: skip
        cache = Cache(pages, self._index(places), paging, heads.rope, tiles.shape[0])
        self.rope(q, k, v, heads.n, cache, heads.rotation)
        return self.attend(q, heads.n, cache, Mask())

    def cross_attention(self, q: Rows, k: Rows, v: Rows, heads: Heads, groups: int = 1) -> Rows:
        """Every row of q attends to all rows of k and v in the same of so many equal groups."""
        n_q, n_k = q.count // groups, k.count // groups
        keys = self._groups((n_k,) * groups, heads)
        # Q has other rows than K and V, so it is scaled beside unused keys of its own.
        queries = self._groups((n_q,) * groups, heads, use="unused")
        self.rope(q, q, q, heads.n, queries, heads.rotation)
        self.rope(k, k, v, heads.shape.n_kv, keys, Rotation(heads.rotation.style))
        paging = replace(
            queries.paging,
            tiles=self._tiles([(i * n_q, n_q, i, n_k) for i in range(groups)], heads),
            tables=keys.paging.tables,
        )  # fmt: skip
        return self.attend(
            q, heads.n, replace(queries, pages=keys.pages, paging=paging), ALL, keys=k
        )

    def relative_attention(
        self, q: Rows, k: Rows, v: Rows, n_heads: int, ranges: npt.ArrayLike, table: Rows, *,
        zero: int = 0, p: Rows | None = None, scale: float = 1.0, softcap: float = 0.0,
    ) -> Rows:  # fmt: skip
        """Attention of row i to rows ranges[i, 0] to before ranges[i, 1], with the scores
        scale * (q k + p table[zero + distance]) (kernels/attention/relative.py); p is q unless
        given."""
        q, k, v, table = (self.alone(rows) for rows in (q, k, v, table))
        p = q if p is None else self.alone(p)
        read, seen, out = (q, p, k, v, table), self._index(ranges), self.rows(q.width, n=q.n)

        def run(e: Emission) -> None:
            queries, places, keys, values, distances = (e.floats(rows) for rows in read)
            relative_attention(
                e.tape, queries, places, keys, values, distances, seen, e.floats(out),
                head=q.width // n_heads, zero=zero, scale=scale, softcap=softcap,
            )  # fmt: skip

        self.launch(run, reads=read, writes=[out])
        return out

    def snake(self, x: Rows, alpha: Tensor, beta: Tensor) -> Rows:
        """x + beta sin(alpha x)^2, with numbers for each column."""
        x, out = self.alone(x), self.rows(x.width, n=x.n)

        def run(e: Emission) -> None:
            snake(e.tape, e.floats(x), alpha, beta, e.floats(out))

        self.launch(run, reads=[x], writes=[out], over=x)
        return out

    def softmax(self, x: Rows) -> Rows:
        """The softmax of each row."""
        x, out = self.alone(x), self.rows(x.width, n=x.n)

        def run(e: Emission) -> None:
            softmax(e.tape, e.floats(x), e.floats(out))

        self.launch(run, reads=[x], writes=[out], over=x)
        return out

    def _groups(
        self, lengths: tuple[int, ...], heads: Heads, mask: Mask = ALL, use: str = "",
        seen: int = 0,
    ) -> Cache:  # fmt: skip
        """Pages of K and V for groups of consecutive rows that see each other and no others."""
        n, n_pages = sum(lengths), [-(-length // PAGE) for length in lengths]
        first_pages, first_rows = np.cumsum([0, *n_pages]), np.cumsum([0, *lengths])
        tables = np.zeros((len(lengths), max(n_pages)), np.int32)
        for i, (first, count) in enumerate(zip(first_pages, n_pages, strict=False)):
            tables[i, :count] = np.arange(first, first + count)
        slots = np.arange(n) + np.repeat(first_pages[:-1] * PAGE - first_rows[:-1], lengths)
        places = np.zeros(n)
        if mask != ALL:  # which keys a row sees depends on where it is
            places = np.arange(n) - np.repeat(first_rows[:-1], lengths)
        tiles = self._tiles(
            [(first_rows[i], length, i, seen or length) for i, length in enumerate(lengths)], heads
        )
        paging = AttentionInputs(
            tiles, self._index(places), self._index(tables),
            CountedRows.of(self.device, self._workspace, n).counts,
        )  # fmt: skip
        pages = self._cache(int(first_pages[-1]), heads.shape, use)
        return Cache(pages, self._index(slots), paging, heads.rope, tiles.shape[0])

    def _tiles(self, groups: Sequence[tuple[int, int, int, int]], heads: Heads) -> Tensor:
        """(first row, rows, row of tables, keys) of groups, cut into tiles of attention."""
        most = self.surroundings.queries(heads.n, heads.shape.n_kv)
        return self._index([
            (first + at, min(most, length - at), table, n_keys)
            for first, length, table, n_keys in groups
            for at in range(0, length, most)
        ])  # fmt: skip

    def _cache(self, n_pages: int, shape: KVShape, use: str) -> LayerKV:
        key = n_pages, shape, use
        if key not in self._pages:
            pages = KVPages(self.device, [shape], n_pages, "f32", "f32")
            self._pages[key] = pages.layers[0]
        return self._pages[key]

    # --- replay ---

    def finish(self, out: Rows, tile: int = PROMPT_TILE) -> None:
        """Plan what was said, whose result is ``out``, and record it. ``tile``: rows that share a
        pass over the weights."""
        assert out.width == out.row
        begin = Launch(_nothing, 0, (), (), tuple(value.rows for value in self._inputs))
        end = Launch(_nothing, 0, (out,), (), ())
        planned = plan([begin, *self.launches, end], [out.value], wanted_only=False)
        layout = Layout(planned, [self.device], exact=True)
        held = layout.bind(shared_blocks([layout], [self.device]))
        step = Step(self._tape, replace(mode_of(PROMPT_TILE, 0, "tiles"), tile=tile))
        for launch in planned.launches:
            if launch.writes:
                n = launch.writes[0].count
                self._tape.known = (n, n, launch.n_tiles, 1, 1)
                around = CountedRows.of(self.device, self._workspace, n)
                launch.run(Emission(step, around, launch, held, planned.shared))
        self._given = [_floats(held, value.rows) for value in self._inputs]
        self._out = _floats(held, out)

    @property
    def kernel_names(self) -> list[str]:
        """The names of the kernels that ``run`` launches."""
        return [launch.name for launch in self._tape.launches]

    def run(self, inputs: Sequence[npt.NDArray[Any]]) -> Floats:
        """The result for these inputs, float32 [n, width]; waits for the device."""
        assert self._out is not None
        for tensor, values in zip(self._given, inputs, strict=True):
            write(self.device, tensor, np.ascontiguousarray(values, np.float32), wait=True)
        self._tape.run(())
        result: Floats = read(self._out, None, self.device.queue)
        return result


def _nothing(e: Emission) -> None:
    """What is written before, or read after all launches."""


def _floats(held: Mapping[Value, Activations], rows: Rows) -> Tensor:
    values = held[rows.value].values
    assert values is not None
    return rows.cut(values)
