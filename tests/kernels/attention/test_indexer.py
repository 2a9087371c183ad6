"""Indexers of sparse attention, and attention over what they select, against NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from launching import run
from paged import attended, filled_cache, nan_rows, poisoned_pages, random_tables, slots_of

from gguf_serve.kernels.attention.attention import (
    PART,
    AttentionInputs,
    Mask,
    attention,
    plain_scratch,
    split_scratch,
    tile_queries,
)
from gguf_serve.kernels.attention.indexer import Blocks, block_maxima, index_scores, select_keys
from gguf_serve.kernels.attention.kv import PAGE, KVShape
from gguf_serve.kernels.attention.rope import (
    QKNorm,
    QKVRows,
    RopeStyle,
    pool_keys,
    rope_kv,
    rope_table,
)
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import Tape
from gguf_serve.kernels.opencl.tensor import Tensor, empty, read, upload
from gguf_serve.kernels.quantization.activations import Activations

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
HEADS, HEAD, TOP_K = 6, 48, 40
SINGLE = Blocks(1, TOP_K)
LENGTHS = (5, 700, 33)
QUERIES = ((1, 690, 10), (0, 0, 5), (2, 31, 2), (1, 30, 20))  # sequence, first position, count
PLACES = [(s, first + i) for s, first, n in QUERIES for i in range(n)]


def inputs_of(
    device: Device, tables: np.ndarray, tile: int
) -> tuple[AttentionInputs, tuple[int, ...]]:
    tiles, at = [], 0
    for sequence, first, n in QUERIES:
        tiles += [(at + i, min(tile, n - i), sequence, first + n) for i in range(0, n, tile)]
        at += n
    positions = [position for _, position in PLACES]
    counts = (len(positions), 0, len(tiles), -(-max(positions) // PART), len(QUERIES))
    arrays = (tiles, positions, tables, counts)
    tensors = (upload(device, np.array(array, np.int32)) for array in arrays)
    return AttentionInputs(*tensors), counts


def bits(selected: np.ndarray, position: int) -> np.ndarray:
    """Whether each key up to the position is selected; later ones in its word are not."""
    words = selected.view(np.uint32)[: position // 32 + 1]
    found = np.unpackbits(words.view(np.uint8), bitorder="little").astype(bool)
    assert not found[position + 1 :].any()
    return found[: position + 1]


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_the_best_keys(device: Device, programs: Programs, kind: str) -> None:
    """Queries of few keys select all of them."""
    rng = np.random.default_rng(8)
    cache = filled_cache(device, KVShape(1, HEAD, 16), LENGTHS, (kind, kind), rng)
    q = rng.standard_normal((len(PLACES), HEADS, HEAD)).astype(np.float32)
    weights = rng.standard_normal((len(PLACES), HEADS)).astype(np.float32)
    inputs, counts = inputs_of(device, cache.tables, 4)
    n_keys = cache.tables.shape[1] * PAGE
    scores = empty(device, (len(PLACES), n_keys))
    selected = upload(device, np.full((len(PLACES), n_keys // 32), -1, np.int32))
    arrays = upload(device, q.reshape(len(q), -1)), upload(device, weights)
    run(
        device, programs, counts,
        lambda tape: index_scores(tape, *arrays, cache.layer, inputs, SINGLE, scores),
        lambda tape: select_keys(tape, scores, inputs, SINGLE, selected),
    )  # fmt: skip
    found = read(selected, None, device.queue)
    for row, (sequence, position) in enumerate(PLACES):
        keys = cache.k[sequence][: position + 1, 0]
        products = np.maximum(np.einsum("hd,sd->hs", q[row].astype(np.float64), keys), 0)
        expected = weights[row].astype(np.float64) @ products
        chosen = bits(found[row], position)
        if position < TOP_K:
            assert chosen.all()
            continue
        assert chosen.sum() == TOP_K
        assert expected[chosen].min() >= expected[~chosen].max() - 1e-4


def test_ties_are_all_selected(device: Device, programs: Programs) -> None:
    scores = np.zeros((1, 64), np.float32)
    scores[0, [3, 40]] = 2.0, 1.0
    inputs, _ = inputs_of(device, np.zeros((3, 2), np.int32), 4)
    positions = upload(device, np.array([59], np.int32))
    inputs = AttentionInputs(inputs.tiles, positions, inputs.tables, inputs.counts)
    for top_k, n in ((1, 1), (2, 2), (3, 60)):
        selected = upload(device, np.zeros((1, 2), np.int32))
        rows = upload(device, scores)
        run(
            device, programs, 1,
            lambda tape, top_k=top_k, rows=rows, selected=selected: select_keys(
                tape, rows, inputs, Blocks(1, top_k), selected
            ),
        )  # fmt: skip
        assert bits(read(selected, None, device.queue)[0], 59).sum() == n


@dataclass(frozen=True)
class Pooling:
    """How the keys of blocks of 4 come about, and how they are kept."""

    gated: bool
    n_rot: int
    types: tuple[str, str]
    tolerance: float


POOLINGS = [
    pytest.param(Pooling(True, 0, ("f32", "f32"), 1e-4), id="gated"),
    pytest.param(Pooling(False, 16, ("f32", "f32"), 1e-4), id="mean"),
    pytest.param(Pooling(False, 16, ("f16", "q8_0"), 0.2), id="mean-q8_0"),
    pytest.param(Pooling(True, 0, ("q8_0", "f16"), 0.2), id="gated-q8_0"),
]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_best_pooled_blocks(device: Device, programs: Programs, pooling: Pooling) -> None:
    """Keys of blocks are made of their tokens', token by token; the tail is seen in any case."""
    rng, blocks = np.random.default_rng(10), Blocks(4, 5)
    tables, norm_weight = random_tables(LENGTHS, rng), rng.standard_normal(HEAD)
    shape = KVShape(1, HEAD, HEAD * (1 + pooling.gated), block=4)
    layer = poisoned_pages(device, [shape], int(tables.max()) + 1, *pooling.types).layers[0]
    raw = rng.standard_normal((sum(LENGTHS), shape.head_v)).astype(np.float32)
    offsets = rng.standard_normal((4, HEAD)).astype(np.float32)
    positions = rng.integers(0, 5000, sum(LENGTHS)).astype(np.int32)  # of a token's block
    angles = rng.random(pooling.n_rot // 2).astype(np.float32)
    weight = upload(device, norm_weight.astype(np.float32))
    norm = None if pooling.gated else QKNorm(1e-6, weight, weight)
    q = rng.standard_normal((len(PLACES), HEADS * HEAD)).astype(np.float32)
    places = [slots_of(t, np.arange(n)) for t, n in zip(tables, LENGTHS, strict=True)]
    slots = upload(device, np.concatenate(places).astype(np.int32))
    values, turned = upload(device, raw), upload(device, positions)
    table = empty(device, (len(raw), 2, max(len(angles), 1)))
    style, unused = RopeStyle(pooling.n_rot, True), empty(device, (len(raw), HEAD))
    rows = QKVRows(unused, values, values)

    def write_keys(tape: Tape) -> None:
        if pooling.n_rot:
            rope_table(tape, turned, upload(device, angles), table)
        rope_kv(tape, rows, 1, layer, None, slots, style=style, scale=1.0)
        pool_keys(
            tape, layer, table if pooling.n_rot else None, slots, style=style, norm=norm,
            gates=upload(device, offsets) if pooling.gated else None,
        )  # fmt: skip

    run(device, programs, len(raw), write_keys)
    inputs, counts = inputs_of(device, tables, 4)
    n_keys = tables.shape[1] * PAGE
    scores = empty(device, (len(PLACES), blocks.n_scores(n_keys)))
    selected = upload(device, np.full((len(PLACES), n_keys // 32), -1, np.int32))
    queries = upload(device, spread(q) if pooling.types[0] == "q8_0" else q)
    run(
        device, programs, counts,
        lambda tape: index_scores(tape, queries, None, layer, inputs, blocks, scores),
        lambda tape: select_keys(tape, scores, inputs, blocks, selected),
    )  # fmt: skip
    found = read(selected, None, device.queue)
    starts = np.cumsum([0, *LENGTHS])
    for row, (sequence, position) in enumerate(PLACES):
        n = (position + 1) // 4
        members = raw[starts[sequence] :][: 4 * n].astype(np.float64).reshape(n, 4, shape.head_v)
        keys = members[..., :HEAD].mean(1)
        if pooling.gated:
            gates = np.exp(members[..., HEAD:] + offsets)
            keys = (members[..., :HEAD] * gates / gates.sum(1, keepdims=True)).sum(1)
        else:
            keys = keys / np.sqrt((keys**2).mean(1, keepdims=True) + 1e-6) * norm_weight
            at = positions[starts[sequence] :][3 : 4 * n : 4]
            keys = rotated(keys, at[:, None] * angles.astype(np.float64))
        products = np.maximum(q[row].reshape(HEADS, HEAD).astype(np.float64) @ keys.T, 0).sum(0)
        check_blocks(bits(found[row], position), products, blocks, pooling.tolerance)


def spread(q: Floats) -> Floats:
    """Heads of Q as rope_kv leaves them where K is kept in few bits."""
    n = HEAD & -HEAD
    hadamard = np.array([[(-1) ** (i & j).bit_count() for i in range(n)] for j in range(n)])
    turned = q.reshape(-1, n) @ hadamard.astype(np.float32) / np.sqrt(np.float32(n))
    return turned.reshape(q.shape).astype(np.float32)


def rotated(keys: Doubles, angles: Doubles) -> Doubles:
    """The first values turned in pairs (i, i + n/2)."""
    n, result = angles.shape[1], keys.copy()
    a, b = keys[:, :n], keys[:, n : 2 * n]
    result[:, :n] = a * np.cos(angles) - b * np.sin(angles)
    result[:, n : 2 * n] = a * np.sin(angles) + b * np.cos(angles)
    return result


def check_blocks(seen: Bools, scores: Doubles, blocks: Blocks, tolerance: float) -> None:
    """Of the blocks that compete, those with these scores, the best are seen; all after them."""
    n, size = len(scores), blocks.size
    chosen = seen[::size][:n]
    assert np.array_equal(seen[: n * size], chosen.repeat(size)[: len(seen)])
    assert seen[n * size :].all()
    if n <= blocks.chosen:
        assert chosen.all()
        return
    assert chosen.sum() == blocks.chosen
    best, others = scores[chosen], scores[~chosen]
    assert best.min(initial=np.inf) >= others.max(initial=-np.inf) - tolerance


@pytest.mark.parametrize("local", [0, 1, 2])
@pytest.mark.parametrize("size", [8, 32, 64])
def test_the_best_blocks_of_every_head(
    device: Device, programs: Programs, size: int, local: int
) -> None:
    """The largest product of a key counts, of the query's own block that of what it sees."""
    rng, blocks = np.random.default_rng(11), Blocks(size, 3, local)
    cache = filled_cache(device, KVShape(1, HEAD, 16), LENGTHS, ("f32", "f32"), rng)
    q = rng.standard_normal((len(PLACES), HEADS, HEAD)).astype(np.float32)
    inputs, counts = inputs_of(device, cache.tables, 4)
    n_keys = cache.tables.shape[1] * PAGE
    scores = empty(device, (len(PLACES), HEADS * blocks.n_scores(n_keys)))
    selected = upload(device, np.full((len(PLACES), HEADS * n_keys // 32), -1, np.int32))
    queries = upload(device, q.reshape(len(q), -1))
    run(
        device, programs, counts,
        lambda tape: block_maxima(tape, queries, cache.layer, inputs, blocks, scores),
        lambda tape: select_keys(tape, scores, inputs, blocks, selected, HEADS),
    )  # fmt: skip
    found = read(selected, None, device.queue).reshape(len(PLACES), HEADS, -1)
    for row, (sequence, position) in enumerate(PLACES):
        products = q[row].astype(np.float64) @ cache.k[sequence][: position + 1, 0].T
        n = max(position // size + 1 - local, 0)
        for head in range(HEADS):
            maxima = np.array([products[head, i * size :][:size].max() for i in range(n)])
            check_blocks(bits(found[row, head], position), maxima, blocks, 1e-4)


@pytest.mark.parametrize("mode", ["tiles", "single", "split", "plain"])
@pytest.mark.parametrize(("group", "n_kv"), [(1, 1), (12, 1), (2, 3)])
def test_attention_over_selected_keys(
    device: Device, programs: Programs, mode: str, group: int, n_kv: int
) -> None:
    """A tenth of the keys, whole pages of none among them, and always the query's own; of each
    KV head others."""
    rng, n, plain = np.random.default_rng(9), len(PLACES), mode == "plain"
    shape = KVShape(n_kv, 64, 32)
    cache = filled_cache(device, shape, LENGTHS, ("f32", "f16"), rng)
    n_heads = n_kv * group
    q = (0.2 * rng.standard_normal((n, n_heads, 64))).astype(np.float32)
    n_words = cache.tables.shape[1] * PAGE // 32
    chosen = rng.random((n, n_kv, n_words * 32)) < 0.1
    chosen[..., 64:128] = False
    chosen[np.arange(n), :, [position for _, position in PLACES]] = True
    words = np.packbits(chosen.reshape(n, -1), axis=1, bitorder="little").view(np.int32)
    tile = tile_queries(device, n_heads, n_kv, plain=plain) if mode == "tiles" else 1
    inputs, counts = inputs_of(device, cache.tables, tile)
    n_ctx = cache.tables.shape[1] * PAGE
    split = split_scratch(device, counts[2], n_heads, shape, n_ctx) if mode == "split" else None
    rows: Tensor = upload(device, q.reshape(n, -1))
    out = nan_rows(device, n, n_heads * 32)
    run(
        device, programs, counts,
        lambda tape: attention(
            tape, rows, n_heads, cache.layer, inputs, Activations(n_heads * 32, out),
            Mask(selected=upload(device, words), by_head=n_kv > 1),
            queries=1 if mode == "single" else None,
            split=split, plain=plain_scratch(device, n_ctx) if plain else None,
        ),
    )  # fmt: skip
    found = read(out, None, device.queue)
    stored = list(zip(cache.k, cache.v, strict=True))
    for row, (sequence, position) in enumerate(PLACES):
        for head in range(n_kv):
            seen = chosen[row, head, : position + 1]
            k, v = (a[: position + 1, head : head + 1][seen] for a in stored[sequence])
            query = q[row, head * group :][:group].astype(np.float64)
            expected = attended(query, k, v, len(k) - 1)
            values = found[row].reshape(n_kv, -1)[head]
            assert np.abs(values - expected.reshape(-1)).max() <= 1e-5
