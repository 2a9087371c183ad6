"""Attention over pages against NumPy in double precision, in every mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from launching import CODE_MAX, run, unquantized
from paged import PagedCache, attended, filled_cache, nan_rows

from gguf_serve.kernels.attention.attention import (
    PART,
    AttentionInputs,
    Mask,
    attention,
    fuses_quantization,
    plain_scratch,
    split_scratch,
    tile_queries,
)
from gguf_serve.kernels.attention.kv import PAGE, KVShape
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import read, upload
from gguf_serve.kernels.quantization.activations import Activations, activations

Floats = npt.NDArray[np.float32]
MODES = ["tiles", "single", "split", "plain"]
LENGTHS = (5, 700, 33)
QUERIES = ((1, 690, 10), (0, 0, 5), (2, 31, 2))  # sequence, first position, count
WINDOWS = (0, 40, 300)
STARTS = (0, 603, 20)  # of the keys that count, with Mask.after
REACH = 9
# Of results of magnitude 4: scores are sums of up to 256 products, and exponents.
ROUNDING = 96 * 2.0**-24


@dataclass(frozen=True)
class Shape:
    """Sizes of an attention layer; ``group`` query heads share a KV head."""

    n_kv: int
    group: int
    head: int
    head_v: int
    types: tuple[str, str]
    softcap: float = 0.0
    bidirectional: bool = False
    after: bool = False
    relative: bool = False

    @property
    def n_heads(self) -> int:
        return self.n_kv * self.group


SHAPES = [
    pytest.param(Shape(2, 3, 64, 64, ("f16", "f16")), id="64x3"),
    pytest.param(Shape(3, 1, 32, 32, ("f32", "f32")), id="32"),
    pytest.param(Shape(1, 7, 80, 80, ("f16", "f32"), softcap=5.0), id="80x7-softcap"),
    pytest.param(Shape(2, 1, 128, 128, ("f32", "f16")), id="128"),
    pytest.param(Shape(1, 3, 256, 256, ("f16", "f16")), id="256x3"),
    pytest.param(Shape(2, 1, 96, 40, ("f32", "f32")), id="96-40"),
    pytest.param(Shape(2, 2, 64, 64, ("f16", "f32"), bidirectional=True), id="both ways"),
    pytest.param(
        Shape(2, 2, 64, 64, ("f32", "f32"), after=True, relative=True), id="after-relative"
    ),
    pytest.param(
        Shape(2, 1, 64, 64, ("f32", "f32"), bidirectional=True, relative=True), id="both-relative"
    ),
    pytest.param(Shape(2, 3, 64, 64, ("q8_0", "q8_0")), id="q8_0"),
    pytest.param(Shape(1, 4, 128, 128, ("q4_0", "q4_1")), id="q4_0-q4_1"),
    pytest.param(Shape(2, 1, 48, 80, ("q5_0", "iq4_nl")), id="q5_0-iq4_nl-48-80"),
    pytest.param(Shape(1, 2, 80, 48, ("q4_1", "q5_0")), id="q4_1-q5_0-80-48"),
    pytest.param(Shape(1, 3, 64, 32, ("iq4_nl", "q5_1")), id="iq4_nl-q5_1"),
    pytest.param(Shape(1, 1, 32, 64, ("q5_1", "bf16")), id="q5_1-bf16"),
    pytest.param(Shape(1, 2, 64, 64, ("bf16", "q4_0")), id="bf16-q4_0"),
]


class Case:
    """Queries of several sequences in one batch, over a random cache."""

    def __init__(
        self, device: Device, programs: Programs, shape: Shape, slab_pages: int = 0
    ) -> None:
        rng = np.random.default_rng(1)
        self.device, self.programs, self.shape = device, programs, shape
        kv = KVShape(shape.n_kv, shape.head, shape.head_v)
        self.cache: PagedCache = filled_cache(device, kv, LENGTHS, shape.types, rng, slab_pages)
        self.places = [(s, first + i) for s, first, n in QUERIES for i in range(n)]
        q = rng.standard_normal((len(self.places), shape.n_heads, shape.head), dtype=np.float32)
        self.q = q * np.float32(2 * shape.head**-0.5)
        biases = rng.standard_normal((shape.n_heads, 2 * REACH + 1), dtype=np.float32)
        self.biases = biases if shape.relative else None

    def inputs(self, tile: int) -> tuple[AttentionInputs, tuple[int, int, int, int]]:
        tiles, at = [], 0
        for sequence, _, n in QUERIES:
            tiles += [
                (at + i, min(tile, n - i), sequence, self.ends[sequence]) for i in range(0, n, tile)
            ]
            at += n
        positions = [position for _, position in self.places]
        counts = (len(positions), 0, len(tiles), -(-max(LENGTHS) // PART))
        arrays = (tiles, positions, self.cache.tables, counts)
        tensors = (upload(self.device, np.array(array, np.int32)) for array in arrays)
        return AttentionInputs(*tensors), counts

    def run(self, mode: str, mask: Mask, out: Activations) -> None:
        shape, layer = self.shape, self.cache.layer
        plain = mode == "plain"
        most = tile_queries(self.device, shape.n_heads, shape.n_kv, plain=plain)
        inputs, counts = self.inputs(most if mode == "tiles" else 1)
        n_ctx = self.cache.tables.shape[1] * PAGE
        split = split_scratch(self.device, counts[2], shape.n_heads, layer.shape, n_ctx)
        scores = plain_scratch(self.device, n_ctx)
        padding = np.full((len(self.q), shape.n_kv * (shape.head + shape.head_v)), np.nan)
        rows = np.concatenate([self.q.reshape(len(self.q), -1), padding], axis=1)
        qkv = upload(self.device, rows.astype(np.float32))
        run(
            self.device, self.programs, counts,
            lambda tape: attention(
                tape, qkv, shape.n_heads, layer, inputs, out, mask,
                queries=1 if mode == "single" else None,
                split=split if mode == "split" else None, plain=scores if plain else None,
            ),
        )  # fmt: skip

    @property
    def ends(self) -> Sequence[int]:
        """The last number of a sequence's tiles."""
        return STARTS if self.shape.after else LENGTHS

    def floats(self, mode: str, window: int) -> Floats:
        n, width = len(self.places), self.shape.n_heads * self.shape.head_v
        room = nan_rows(self.device, n + 1, width)
        self.run(mode, self.mask(window), Activations(width, room))
        result: Floats = read(room, None, self.device.queue)
        assert np.isnan(result[n]).all()
        return result[:n]

    def mask(self, window: int) -> Mask:
        biases = None if self.biases is None else upload(self.device, self.biases)
        return Mask(
            window, self.shape.softcap, bidirectional=self.shape.bidirectional,
            after=self.shape.after, biases=biases,
        )  # fmt: skip

    def expected(self, window: int) -> npt.NDArray[np.float64]:
        options = {
            "window": window, "softcap": self.shape.softcap,
            "bidirectional": self.shape.bidirectional,
            "biases": None if self.biases is None else self.biases.astype(np.float64),
        }  # fmt: skip
        rows = [
            attended(
                q.astype(np.float64),
                self.cache.k[s],
                self.cache.v[s],
                position,
                start=STARTS[s] * self.shape.after,
                **options,
            )
            for q, (s, position) in zip(self.q, self.places, strict=True)
        ]
        return np.array(rows).reshape(len(rows), -1)


@pytest.fixture(params=SHAPES)
def case(request: pytest.FixtureRequest, device: Device, programs: Programs) -> Case:
    return Case(device, programs, request.param)


@pytest.mark.parametrize("mode", MODES)
def test_attention(case: Case, mode: str) -> None:
    """Rows that hold no key of the sequence are NaN: none of them gets into a result."""
    for window in WINDOWS[:1] if case.shape.after else WINDOWS:
        error = np.abs(case.floats(mode, window) - case.expected(window)).max()
        assert error <= ROUNDING, f"{window=}: {error / 2.0**-24:.0f} * 2**-24"


@pytest.mark.parametrize("mode", MODES)
def test_pages_in_slabs(device: Device, programs: Programs, mode: str) -> None:
    shape = SHAPES[9].values[0]
    case, whole = Case(device, programs, shape, slab_pages=7), Case(device, programs, shape)
    assert len(case.cache.layer.k.slabs) == 4
    for window in WINDOWS:
        assert np.array_equal(case.floats(mode, window), whole.floats(mode, window))


def test_prompts_and_single_tokens_agree_in_every_bit(case: Case) -> None:
    if not case.device.is_simd:
        pytest.skip("promised for CPUs only")
    for window in WINDOWS:
        tiles = case.floats("tiles", window)
        assert np.array_equal(case.floats("split", window), tiles)
        assert np.array_equal(case.floats("single", window), tiles)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [SHAPES[0], Shape(1, 2, 80, 80, ("f16", "f32"))])
def test_quantized_results(device: Device, programs: Programs, shape: Shape, mode: str) -> None:
    """With room for floats too, or without it where that is enough."""
    case = Case(device, programs, shape)
    n, width = len(case.places), shape.n_heads * shape.head_v
    alone = fuses_quantization(device, shape.head_v, plain=mode == "plain")
    out = activations(device, n, width, quantized=True)
    if not alone:
        out = Activations(width, nan_rows(device, n, width), out.codes, out.scales)
    case.run(mode, case.mask(40), out)
    result = unquantized(device, programs, out, n).reshape(n, -1, 32)
    expected = case.expected(40).reshape(n, -1, 32)
    steps = (np.abs(expected).max(2, keepdims=True) + ROUNDING) / CODE_MAX
    assert np.all(np.abs(result - expected) <= steps / 2 + 2 * ROUNDING)
    if not alone:
        floats = read(out.values, None, device.queue).reshape(expected.shape)
        assert np.abs(floats - expected).max() <= ROUNDING


def test_one_key_gives_its_value(device: Device, programs: Programs) -> None:
    """A window of one token: the softmax of one score is 1, whatever the score."""
    case = Case(device, programs, SHAPES[1].values[0])
    values = np.array([case.cache.v[s][position] for s, position in case.places])
    for mode in MODES:
        assert np.array_equal(case.floats(mode, 1), values.reshape(len(values), -1))


def test_results_without_room_for_floats_where_they_are_needed(
    device: Device, programs: Programs
) -> None:
    case = Case(device, programs, SHAPES[0].values[0])
    codes = activations(device, len(case.places), 384, quantized=True)
    with pytest.raises(ValueError, match="float values"):
        case.run("plain", Mask(), codes)
