"""The indexer of sparse attention, and attention over what it selects, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run
from paged import attended, filled_cache, nan_rows

from kernels.attention import (
    PART,
    AttentionInputs,
    Mask,
    attention,
    plain_scratch,
    split_scratch,
    tile_queries,
)
from kernels.device import Device
from kernels.indexer import index_scores, select_keys
from kernels.kv import PAGE, KVShape
from kernels.matmul import Activations
from kernels.program import Programs
from kernels.tensor import Tensor, empty, read, upload

HEADS, HEAD, TOP_K = 6, 48, 40
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
    cache = filled_cache(device, programs, KVShape(1, HEAD, 16), LENGTHS, (kind, kind), rng)
    q = rng.standard_normal((len(PLACES), HEADS, HEAD)).astype(np.float32)
    weights = rng.standard_normal((len(PLACES), HEADS)).astype(np.float32)
    inputs, counts = inputs_of(device, cache.tables, 4)
    n_keys = cache.tables.shape[1] * PAGE
    scores = empty(device, (len(PLACES), n_keys))
    selected = upload(device, np.full((len(PLACES), n_keys // 32), -1, np.int32))
    arrays = upload(device, q.reshape(len(q), -1)), upload(device, weights)
    run(
        device, programs, counts,
        lambda tape: index_scores(tape, *arrays, cache.layer, inputs, TOP_K, scores),
        lambda tape: select_keys(tape, scores, inputs, TOP_K, selected),
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
                tape, rows, inputs, top_k, selected
            ),
        )  # fmt: skip
        assert bits(read(selected, None, device.queue)[0], 59).sum() == n


@pytest.mark.parametrize("mode", ["tiles", "single", "split", "plain"])
@pytest.mark.parametrize("group", [1, 12])
def test_attention_over_selected_keys(
    device: Device, programs: Programs, mode: str, group: int
) -> None:
    """A tenth of the keys, whole pages of none among them, and always the query's own."""
    rng, n, plain = np.random.default_rng(9), len(PLACES), mode == "plain"
    cache = filled_cache(device, programs, KVShape(1, 64, 32), LENGTHS, ("f32", "f16"), rng)
    q = (0.2 * rng.standard_normal((n, group, 64))).astype(np.float32)
    n_words = cache.tables.shape[1] * PAGE // 32
    chosen = rng.random((n, n_words * 32)) < 0.1
    chosen[:, 64:128] = False
    chosen[np.arange(n), [position for _, position in PLACES]] = True
    words = np.packbits(chosen, axis=1, bitorder="little").view(np.int32)
    tile = tile_queries(device, group, 1, plain=plain) if mode == "tiles" else 1
    inputs, counts = inputs_of(device, cache.tables, tile)
    shape, n_ctx = cache.layer.shape, cache.tables.shape[1] * PAGE
    split = split_scratch(device, counts[2], group, shape, n_ctx) if mode == "split" else None
    rows: Tensor = upload(device, q.reshape(n, -1))
    out = nan_rows(device, n, group * 32)
    run(
        device, programs, counts,
        lambda tape: attention(
            tape, rows, group, cache.layer, inputs, Activations(group * 32, out),
            Mask(selected=upload(device, words)), queries=1 if mode == "single" else None,
            split=split, plain=plain_scratch(device, n_ctx) if plain else None,
        ),
    )  # fmt: skip
    found = read(out, None, device.queue)
    for row, (sequence, position) in enumerate(PLACES):
        k, v = (
            a[: position + 1][chosen[row, : position + 1]]
            for a in (cache.k[sequence], cache.v[sequence])
        )
        expected = attended(q[row].astype(np.float64), k, v, len(k) - 1)
        assert np.abs(found[row] - expected.reshape(-1)).max() <= 1e-5
