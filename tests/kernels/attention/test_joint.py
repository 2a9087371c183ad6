"""Attention over keys that are their own values, and the scores of an indexer, against NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from launching import run
from msgspec.structs import replace
from paged import nan_rows

from gguf_serve.kernels.attention.attention import PART, AttentionInputs
from gguf_serve.kernels.attention.compress import key_shape
from gguf_serve.kernels.attention.joint import Ending, Keys, attend, score_keys
from gguf_serve.kernels.attention.kv import PAGE, KVPages, KVShape
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import read, upload, write

HEADS, HEAD, N_ROT = 12, 96, 16
LENGTHS = (700, 37)
QUERIES = ((0, 690, 10), (1, 0, 37), (0, 300, 3))  # sequence, first position, count
PLACES = [(s, first + i) for s, first, n in QUERIES for i in range(n)]
ENDS = [first + n for _, first, n in QUERIES for _ in range(n)]  # of what a step has
WINDOWS = KVShape(1, HEAD, HEAD, joint=True)
Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


class Caches:
    """Random keys of two sequences, of tokens and of every ``ratio`` of them."""

    def __init__(self, device: Device, ratio: int, kind: str, head: int = HEAD) -> None:
        rng = np.random.default_rng(4)
        n_pages = [-(-length // PAGE) for length in LENGTHS]
        self.tables = np.zeros((2, max(n_pages)), np.int32)
        numbers = 1 + rng.permutation(sum(n_pages)).astype(np.int32)
        for table, n, at in zip(self.tables, n_pages, (0, n_pages[0]), strict=True):
            table[:n] = numbers[at : at + n]
        shapes = [replace(WINDOWS, head=head, head_v=head), key_shape(head, ratio)]
        pages = KVPages(device, shapes, sum(n_pages) + 1, kind, "f32")
        self.layers = pages.layers
        self.values = []  # [pages, rows, head]
        for layer in pages.layers:
            dtype = np.float16 if kind == "f16" else np.float32
            rows = layer.shape.rows
            array = rng.standard_normal((sum(n_pages) + 1, rows, head)).astype(dtype)
            write(device, layer.v.slabs[0], array.view(np.uint8).reshape(len(array), -1), wait=True)
            self.values.append(array.astype(np.float64))
        places = zip(PLACES, ENDS, strict=True)
        tiles = [(i, 1, sequence, end) for i, ((sequence, _), end) in enumerate(places)]
        positions = [position for _, position in PLACES]
        n = len(PLACES)
        self.counts = (n, 0, n, -(-max(positions) // PART), len(QUERIES))
        arrays = (tiles, positions, self.tables, self.counts)
        self.inputs = AttentionInputs(*(upload(device, np.array(a, np.int32)) for a in arrays))

    def keys(self, cache: int, sequence: int, position: int, ratio: int) -> Doubles:
        """Those that are complete at a position: [keys, head]."""
        ends = (np.arange((position + 1) // ratio) + 1) * ratio - 1
        pages = self.tables[sequence][ends // PAGE]
        return self.values[cache][pages, ends % PAGE // ratio]


def expected(q: Floats, keys: Doubles, sinks: Floats, position: int) -> Doubles:
    """Attention of one token, rotated back: [heads, head]."""
    weights = np.exp(q.astype(np.float64) @ keys.T)
    total = weights.sum(1, keepdims=True) + np.exp(sinks.astype(np.float64))[:, None]
    out: Doubles = weights @ keys / total
    even, odd = out[:, HEAD - N_ROT :: 2].copy(), out[:, HEAD - N_ROT + 1 :: 2].copy()
    cos, sin = turns(position)
    out[:, HEAD - N_ROT :: 2] = even * cos + odd * sin
    out[:, HEAD - N_ROT + 1 :: 2] = odd * cos - even * sin
    return out


def turns(position: int) -> tuple[Doubles, Doubles]:
    angles = position * 100.0 ** -(np.arange(N_ROT // 2) / (N_ROT // 2))
    return np.cos(angles), np.sin(angles)


@pytest.mark.parametrize(
    ("ratio", "chosen", "together"),
    [(0, False, False), (0, False, True), (4, False, False), (4, True, False), (128, False, False)],
)
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_one_softmax_over_a_window_and_compressed_keys(
    device: Device, programs: Programs, ratio: int, chosen: bool, together: bool, kind: str
) -> None:
    """``together``: tokens of a step see those after them, too."""
    rng, n, window = np.random.default_rng(5), len(PLACES), 40
    caches = Caches(device, ratio or 4, kind)
    q = (0.2 * rng.standard_normal((n, HEADS, HEAD))).astype(np.float32)
    sinks = rng.standard_normal(HEADS).astype(np.float32)
    bits = np.zeros((n, 192), bool)
    for row, (_, position) in zip(bits, PLACES, strict=True):
        row[: (position + 1) // 4] = rng.random((position + 1) // 4) < 0.2
        row[64:128] = False
    selected = upload(device, np.packbits(bits, axis=1, bitorder="little").view(np.int32))
    used = [Keys(caches.layers[0], caches.inputs, window=window, together=together)]
    if ratio:
        chosen_bits = selected if chosen else None
        used.insert(0, Keys(caches.layers[1], caches.inputs, ratio, selected=chosen_bits))
    rotation = np.array([turns(position) for _, position in PLACES], np.float32)
    ending = Ending(upload(device, sinks), upload(device, rotation))
    rows, out = upload(device, q.reshape(n, -1)), nan_rows(device, n, HEADS * HEAD)
    partial = nan_rows(device, n, 2 * HEADS)
    run(
        device, programs, caches.counts,
        lambda tape: attend(tape, rows, HEADS, used, ending, out, partial),
    )  # fmt: skip
    found = read(out, None, device.queue).reshape(n, HEADS, HEAD)
    for i, ((sequence, position), end) in enumerate(zip(PLACES, ENDS, strict=True)):
        seen = end - 1 if together else position
        keys = caches.keys(0, sequence, seen, 1)[max(0, position + 1 - window) :]
        if ratio:
            more = caches.keys(1, sequence, position, ratio)
            keys = np.concatenate([more[bits[i, : len(more)]] if chosen else more, keys])
        assert np.abs(found[i] - expected(q[i], keys, sinks, position)).max() <= 1e-5


@pytest.mark.parametrize("ratio", [4, 128])
def test_scores(device: Device, programs: Programs, ratio: int) -> None:
    """Of keys that are complete, for queries with more of them than are to be chosen."""
    rng, n, head, top_k = np.random.default_rng(6), len(PLACES), 48, 3
    caches = Caches(device, ratio, "f32", head)
    q = rng.standard_normal((n, 6, head)).astype(np.float32)
    weights = rng.standard_normal((n, 6)).astype(np.float32)
    scores = nan_rows(device, n, 192)
    rows, factors = upload(device, q.reshape(n, -1)), upload(device, weights)
    keys = Keys(caches.layers[1], caches.inputs, ratio)
    run(
        device, programs, caches.counts,
        lambda tape: score_keys(tape, rows, factors, keys, top_k, scores),
    )  # fmt: skip
    found = read(scores, None, device.queue)
    for i, (sequence, position) in enumerate(PLACES):
        seen = caches.keys(1, sequence, position, ratio)
        if len(seen) > top_k:
            products = np.maximum(q[i].astype(np.float64) @ seen.T, 0)
            assert np.abs(found[i, : len(seen)] - weights[i] @ products).max() <= 1e-4
        assert np.isnan(found[i, len(seen) :]).all()
