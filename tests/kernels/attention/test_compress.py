"""Compressed keys, made in steps of any size, against NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from launching import run
from paged import nan_rows

from gguf_serve.kernels.attention.compress import (
    Compression,
    KeyFinish,
    compress,
    key_shape,
    store_keys,
)
from gguf_serve.kernels.attention.kv import PAGE, KVPages
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import Tensor, read, upload, write

WIDTH, N_ROT, EPS, N_SLOTS = 32, 8, 1e-5, 3
STEPS = ((5, 200), (1, 1), (130, 64), (64, 1), (70, 7))  # tokens of two sequences in each step
SLOTS = (2, 0)
Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
VARIANTS = [pytest.param(4, True, id="overlap"), pytest.param(128, False, id="apart")]


def means(rows: Doubles, biases: Doubles, ratio: int, *, overlaps: bool) -> Doubles:
    """Key by key: [keys, WIDTH] of a sequence's rows of values and logits."""
    values, logits = np.split(rows, 2, axis=1)
    logits = logits + biases[np.arange(len(rows)) % ratio]
    own, keys = slice(-WIDTH, None), []
    for end in range(ratio, len(rows) + 1, ratio):
        v, w = values[end - ratio : end, own], logits[end - ratio : end, own]
        if overlaps and end > ratio:
            before = slice(end - 2 * ratio, end - ratio)
            v = np.concatenate([values[before, :WIDTH], v])
            w = np.concatenate([logits[before, :WIDTH], w])
        weights = np.exp(w - w.max(0))
        keys.append((weights * v).sum(0) / weights.sum(0))
    return np.array(keys).reshape(-1, WIDTH)


def compression(device: Device, ratio: int, rng: np.random.Generator, *, overlaps: bool) -> Tensor:
    return upload(device, rng.standard_normal((ratio, WIDTH * (1 + overlaps))).astype(np.float32))


@pytest.mark.parametrize(("ratio", "overlaps"), VARIANTS)
def test_means_over_steps(device: Device, programs: Programs, ratio: int, overlaps: bool) -> None:
    """In slots whose state is another sequence's at first."""
    rng = np.random.default_rng(2)
    c = Compression(ratio, WIDTH, compression(device, ratio, rng, overlaps=overlaps))
    assert c.overlaps == overlaps
    biases = read(c.biases, None, device.queue).astype(np.float64)
    lengths = np.sum(STEPS, axis=0)
    rows = [rng.standard_normal((n, c.row)).astype(np.float32) for n in lengths]
    state = nan_rows(device, N_SLOTS * c.state_shape[0], c.row)
    state = Tensor(state.buffer, (N_SLOTS, *c.state_shape), state.dtype)
    found: list[list[Floats]] = [[], []]
    at = [0, 0]
    for step in STEPS:
        parts = [rows[i][at[i] : at[i] + n] for i, n in enumerate(step)]
        sequences = np.array(
            [(0, step[0], SLOTS[0], at[0]), (step[0], step[1], SLOTS[1], at[1])], np.int32
        )
        x, listed = upload(device, np.concatenate(parts)), upload(device, sequences)
        keys = nan_rows(device, sum(step), WIDTH)
        run(
            device, programs, (sum(step), 0, 0, 0, 2),
            lambda tape, x=x, listed=listed, keys=keys: compress(tape, x, c, listed, state, keys),
        )  # fmt: skip
        made = np.split(read(keys, None, device.queue), [step[0]])
        for i, n in enumerate(step):
            ends = (np.arange(at[i], at[i] + n) + 1) % ratio == 0
            assert np.isnan(made[i][~ends]).all()
            found[i].append(made[i][ends])
            at[i] += n
    for i in range(2):
        exact = means(rows[i].astype(np.float64), biases, ratio, overlaps=overlaps)
        assert np.abs(np.concatenate(found[i]) - exact).max() <= 1e-5


@pytest.mark.parametrize("ratio", [4, 128])
def test_keys_in_their_pages(device: Device, programs: Programs, ratio: int) -> None:
    """Normalized and rotated by the position of their first token, and nothing else written."""
    rng, n, first = np.random.default_rng(3), 150, 250
    positions = np.arange(first, first + n)
    table = np.arange(20, 0, -1)
    pages = KVPages(device, [key_shape(WIDTH, ratio)], 21, "f32", "f16")
    layer = pages.layers[0]
    slab = layer.v.slabs[0]
    write(device, slab, np.full(slab.shape, 0xFF, np.uint8), wait=True)
    keys = rng.standard_normal((n, WIDTH)).astype(np.float32)
    weight = rng.standard_normal(WIDTH).astype(np.float32)
    frequencies = (0.1 ** np.arange(N_ROT // 2)).astype(np.float32)
    finish = KeyFinish(upload(device, weight), EPS, upload(device, frequencies), 1.5)
    slots = (table[positions // PAGE] * PAGE + positions % PAGE).astype(np.int32)
    tensors = [upload(device, a) for a in (keys, positions.astype(np.int32), slots)]
    run(
        device, programs, n,
        lambda tape: store_keys(tape, tensors[0], ratio, finish, tensors[1], tensors[2], layer),
    )  # fmt: skip
    stored = read(slab, None, device.queue).view(np.float32).reshape(21, -1, WIDTH)
    ends = positions[(positions + 1) % ratio == 0]
    x = keys[ends - first].astype(np.float64)
    x = x / np.sqrt((x**2).mean(1, keepdims=True) + EPS) * weight
    angles = (ends + 1 - ratio)[:, None] * frequencies.astype(np.float64)
    cos, sin = 1.5 * np.cos(angles), 1.5 * np.sin(angles)
    even, odd = x[:, -N_ROT::2].copy(), x[:, 1 - N_ROT :: 2].copy()
    x[:, -N_ROT::2], x[:, 1 - N_ROT :: 2] = even * cos - odd * sin, even * sin + odd * cos
    places = table[ends // PAGE], ends % PAGE // ratio
    assert np.abs(stored[places] - x).max() <= 1e-4
    stored[places] = np.nan
    assert np.isnan(stored).all()
