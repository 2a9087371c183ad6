"""Rotation, Q/K norms and the write to the cache, against NumPy in double precision.

What was written is read back by attention, so nothing here knows the layout of a page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from launching import run
from paged import (
    attended,
    joined,
    nan_rows,
    poisoned_pages,
    random_tables,
    slots_of,
)

from gguf_serve.kernels.attention.attention import AttentionInputs, Mask, attention, plain_scratch
from gguf_serve.kernels.attention.kv import PAGE, KVShape, LayerKV
from gguf_serve.kernels.attention.rope import QKNorm, RopeStyle, qkv_rows, rope_kv, rope_table
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import Tensor, empty, read, upload
from gguf_serve.kernels.quantization.activations import Activations

Doubles = npt.NDArray[np.float64]
FLOATS = {"f32": np.float32, "f16": np.float16}
ULP = 2.0**-24
LENGTHS = (45, 3)
N_HEADS, SCALE, EPS = 4, 0.125, 1e-6


def frequencies(n_rot: int) -> npt.NDArray[np.float32]:
    return (10000.0 ** -(np.arange(0, n_rot, 2) / n_rot)).astype(np.float32)


def test_table_of_cosines_and_sines(device: Device, programs: Programs) -> None:
    positions = np.array([0, 1, 63, 4095, 100_000], np.int32)
    table, out = frequencies(50), empty(device, (5, 2, 25))
    inputs = upload(device, positions), upload(device, table)
    run(device, programs, 5, lambda tape: rope_table(tape, *inputs, out, 1.25))
    result = read(out, None, device.queue)
    angles = positions[:, None] * table.astype(np.float64)
    expected = 1.25 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    bound = 1.25 * ULP * (8 + angles)  # the angle itself is a float
    assert np.all(np.abs(result - expected) <= bound[:, None])


def test_positions_with_four_components(device: Device, programs: Programs) -> None:
    positions = np.array([[3, 1, 4, 1], [5, 9, 2, 6]], np.int32)
    components = np.array([0, 2, 1, 3, 2], np.int32)
    angles, out = frequencies(10), empty(device, (2, 2, 5))
    inputs = upload(device, positions), upload(device, angles)
    turned_by = upload(device, components)
    run(device, programs, 2, lambda tape: rope_table(tape, *inputs, out, 1.0, turned_by))
    expected = positions[:, components] * angles.astype(np.float64)
    result = read(out, None, device.queue)
    assert np.abs(result - np.stack([np.cos(expected), np.sin(expected)], axis=1)).max() < 1e-5


@dataclass(frozen=True)
class Variant:
    shape: KVShape
    style: RopeStyle
    types: tuple[str, str]
    norms: bool = False
    rotates: bool = True
    values: bool = False  # heads of V are normalized


VARIANTS = [
    pytest.param(Variant(KVShape(2, 64, 64), RopeStyle(64, False), ("f16", "f16")), id="norm"),
    pytest.param(Variant(KVShape(2, 64, 64), RopeStyle(64, True), ("f32", "f32")), id="neox"),
    pytest.param(
        Variant(KVShape(1, 80, 80), RopeStyle(20, True), ("f32", "f16"), norms=True),
        id="neox-partial-norms",
    ),
    pytest.param(
        Variant(KVShape(4, 48, 24), RopeStyle(32, False), ("f16", "f32"), norms=True),
        id="norm-partial-norms",
    ),
    pytest.param(
        Variant(KVShape(2, 64, 64), RopeStyle(64, True), ("f32", "f32"), rotates=False),
        id="no-rotation",
    ),
    pytest.param(
        Variant(KVShape(2, 64, 64), RopeStyle(64, True), ("f32", "f32"), norms=True, values=True),
        id="norms-of-values",
    ),
]


def rotated(x: Doubles, positions: npt.NDArray[np.int64], style: RopeStyle) -> Doubles:
    """x: [n, heads, head]; pairs as complex numbers."""
    half = style.n_rot // 2
    first, second = (
        (np.arange(half), np.arange(half) + half)
        if style.neox
        else (np.arange(0, style.n_rot, 2), np.arange(1, style.n_rot, 2))
    )
    angles = positions[:, None, None] * frequencies(style.n_rot).astype(np.float64)
    turned = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angles)
    result = x.copy()
    result[..., first], result[..., second] = turned.real, turned.imag
    return result


def normalized(x: Doubles, weight: npt.NDArray[np.float32]) -> Doubles:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight


class Case:
    """Two sequences whose Q, K and V go through rope_kv in one batch."""

    def __init__(self, device: Device, programs: Programs, variant: Variant) -> None:
        rng = np.random.default_rng(1)
        shape, n = variant.shape, sum(LENGTHS)
        self.device, self.programs, self.variant = device, programs, variant
        self.q = rng.standard_normal((n, N_HEADS, shape.head), dtype=np.float32)
        self.k = rng.standard_normal((n, shape.n_kv, shape.head), dtype=np.float32)
        self.v = rng.standard_normal((n, shape.n_kv, shape.head_v), dtype=np.float32)
        self.weights = 1 + 0.2 * rng.standard_normal((2, shape.head), dtype=np.float32)
        self.tables = random_tables(LENGTHS, rng)
        self.positions = np.concatenate([np.arange(length) for length in LENGTHS])
        self.layer = poisoned_pages(device, [shape], 8, *variant.types).layers[0]
        self.qkv = upload(device, joined(self.q, self.k, self.v))

    def write(self, *, stored: bool = True) -> None:
        variant, device = self.variant, self.device
        rows = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
        tables = [self.tables[row] for row in rows]
        places = [slots_of(t, p) for t, p in zip(tables, self.positions, strict=True)]
        positions = upload(device, self.positions.astype(np.int32))
        slots = upload(device, np.array(places, np.int32))
        half = variant.style.n_rot // 2
        angles = upload(device, frequencies(variant.style.n_rot))
        table = empty(device, (len(places), 2, half))
        norm = QKNorm(
            EPS, *(upload(device, weight) for weight in self.weights), values=variant.values
        )
        run(
            device, self.programs, len(places),
            lambda tape: rope_table(tape, positions, angles, table),
            lambda tape: rope_kv(
                tape, qkv_rows(self.qkv, N_HEADS, variant.shape), N_HEADS, self.layer,
                table if variant.rotates else None, slots,
                style=variant.style, scale=SCALE,
                norm=norm if variant.norms else None, stored=stored,
            ),
        )  # fmt: skip

    def expected(self) -> tuple[Doubles, Doubles, Doubles]:
        """Q times the scale, K and V, before K and V are rounded to the cache's types."""
        q, k = self.q.astype(np.float64), self.k.astype(np.float64)
        if self.variant.norms:
            q, k = normalized(q, self.weights[0]), normalized(k, self.weights[1])
        if self.variant.rotates:
            q, k = (rotated(x, self.positions, self.variant.style) for x in (q, k))
        v = self.v.astype(np.float64)
        return q * SCALE, k, normalized(v, np.ones(1, np.float32)) if self.variant.values else v

    def attend(self, q: npt.NDArray[np.float32], mask: Mask) -> npt.NDArray[np.float32]:
        """Attention of every token with these queries; plain, the simplest of the modes."""
        device, shape, n = self.device, self.variant.shape, len(self.positions)
        tiles = [(i, 1, int(i >= LENGTHS[0]), 0) for i in range(n)]
        counts = (n, 0, n, 1)
        inputs = AttentionInputs(
            *(upload(device, np.array(a, np.int32))
              for a in (tiles, self.positions, self.tables, counts))
        )  # fmt: skip
        room = nan_rows(device, n, N_HEADS * shape.head_v)
        rows, scratch = upload(device, q), plain_scratch(device, self.tables.shape[1] * PAGE)
        run(
            device, self.programs, counts,
            lambda tape: attention(
                tape, rows, N_HEADS, self.layer, inputs, Activations(room.shape[1], room), mask,
                plain=scratch,
            ),
        )  # fmt: skip
        result: npt.NDArray[np.float32] = read(room, None, device.queue)
        return result.reshape(n, N_HEADS, shape.head_v)


@pytest.fixture(params=VARIANTS)
def case(request: pytest.FixtureRequest, device: Device, programs: Programs) -> Case:
    case = Case(device, programs, request.param)
    case.write()
    return case


def test_queries_are_rotated_and_scaled_in_place(case: Case) -> None:
    result = read(case.qkv, None, case.device.queue)
    q, _, _ = case.expected()
    width = q[0].size
    error = np.abs(result[:, :width] - q.reshape(len(q), -1)).max()
    assert error <= SCALE * (16 + max(LENGTHS)) * 4 * ULP  # magnitudes to 4, angles to 45
    v_at = width + case.k[0].size
    assert np.array_equal(result[:, v_at:], joined(case.v))


def test_values_land_in_their_rows(case: Case) -> None:
    """A token that sees only its own key gets its value."""
    _, _, v = case.expected()
    stored = v.astype(FLOATS[case.variant.types[1]]).astype(np.float32)
    expected = np.repeat(stored, N_HEADS // stored.shape[1], axis=1)
    result = case.attend(read(case.qkv, None, case.device.queue), Mask(window=1))
    assert np.abs(result - expected).max() <= 16 * ULP * case.variant.values


def test_keys_land_in_their_rows(case: Case) -> None:
    """Scores of random queries: a key that is elsewhere, or other than it should be, shows."""
    type_k, type_v = (FLOATS[name] for name in case.variant.types)
    _, k, v = case.expected()
    # Halves may round the other way than here, and each move its key's score by a tenth of a step;
    # two do so where roots have the error that GPUs' may have (Mesa's llvmpipe).
    bound = 0.2 * 2.0**-11 if type_k == np.float16 else 32 * ULP
    keys = k.astype(np.float32).astype(type_k).astype(np.float64)
    values = v.astype(np.float32).astype(type_v).astype(np.float64)
    ends = np.cumsum(LENGTHS)
    begins = ends - LENGTHS
    q = np.random.default_rng(2).standard_normal(case.q.shape, dtype=np.float32) * 0.2
    rows = joined(q, np.full(case.k.shape, np.nan, np.float32), case.v)
    result = case.attend(rows.astype(np.float32), Mask())
    for begin, end in zip(begins, ends, strict=True):
        for i in range(begin, end):
            query = q[i].astype(np.float64)
            expected = attended(query, keys[begin:end], values[begin:end], i - begin)
            assert np.abs(result[i] - expected).max() <= bound


def test_queries_alone(device: Device, programs: Programs) -> None:
    """Where K and V are there already, what is in the pages stays."""
    case = Case(device, programs, Variant(KVShape(2, 64, 64), RopeStyle(64, True), ("f32", "f32")))
    case.write(stored=False)
    q, _, _ = case.expected()
    result = read(case.qkv, None, device.queue)[:, : q[0].size]
    assert np.abs(result - q.reshape(len(q), -1)).max() <= SCALE * (16 + max(LENGTHS)) * 4 * ULP
    assert np.isnan(case.attend(case.q.reshape(len(q), -1), Mask(window=1))).all()


def test_norms_of_values_of_another_size(device: Device, programs: Programs) -> None:
    shape = KVShape(4, 48, 24)
    case = Case(
        device, programs,
        Variant(shape, RopeStyle(32, False), ("f32", "f32"), norms=True, values=True),
    )  # fmt: skip
    with pytest.raises(ValueError, match="heads of V of 24, with those of K of 48"):
        case.write()


def test_a_row_of_another_width_is_refused(device: Device, programs: Programs) -> None:
    layer: LayerKV = poisoned_pages(device, [KVShape(2, 64, 32)], 1, "f32", "f32").layers[0]
    slots: Tensor = empty(device, (1,), np.int32)
    style = RopeStyle(64, True)
    with pytest.raises(ValueError, match="have 512 values, not 448"):
        run(
            device, programs, 1,
            lambda tape: rope_kv(
                tape, qkv_rows(empty(device, (1, 512)), 4, layer.shape), 4, layer, None, slots,
                style=style, scale=1.0,
            ),
        )  # fmt: skip
