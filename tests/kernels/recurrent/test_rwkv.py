"""RWKV's recurrences with state, and what they read, against NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from launching import run
from sequences import LENGTHS, PIECES, SLOTS, WHOLE, Division, place

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import Columns, empty, read, upload
from gguf_serve.kernels.recurrent.rwkv import (
    Removal,
    RWKV7Vectors,
    RWKVHeads,
    rwkv,
    rwkv6_decay,
    rwkv7_keys,
)

Doubles = npt.NDArray[np.float64]
N_HEADS, SIZE, N = 4, 32, 5
WIDTH = N_HEADS * SIZE


def sigmoid(x: Doubles) -> Doubles:
    return 1 / (1 + np.exp(-x))


def side_by_side(
    device: Device, rng: np.random.Generator, widths: Sequence[int]
) -> tuple[list[Columns], list[Doubles]]:
    """Random columns of the same N rows, on the device and as they are."""
    rows = rng.standard_normal((N, sum(widths)), dtype=np.float32)
    tensor, ends = upload(device, rows), np.cumsum((0, *widths))
    found = [rows[:, i:j].astype(np.float64) for i, j in pairwise(ends)]
    return [Columns(tensor, int(at)) for at in ends[:-1]], found


@pytest.mark.parametrize("division", [WHOLE, PIECES], ids=["whole", "pieces"])
@pytest.mark.parametrize("kind", ["removal", "bonus", "shared values"])
def test_recurrence(device: Device, programs: Programs, division: Division, kind: str) -> None:
    rng = np.random.default_rng(3)
    heads = RWKVHeads(N_HEADS, SIZE, 2 if kind == "shared values" else 1)
    bonus = rng.standard_normal(WIDTH).astype(np.float32) if kind == "bonus" else None
    widths = (WIDTH, WIDTH, WIDTH, WIDTH // heads.repeat, WIDTH, WIDTH)
    ends = np.cumsum((0, *widths))
    inputs = {}
    for slot, n in LENGTHS.items():
        rows = 0.3 * rng.standard_normal((n, ends[-1]))
        rows[:, ends[1] : ends[2]] = rng.uniform(0.3, 0.99, (n, WIDTH))  # decays
        inputs[slot] = rows.astype(np.float32)
    state = upload(device, np.full((SLOTS, N_HEADS, SIZE, SIZE), np.nan, np.float32))
    own = None if bonus is None else upload(device, bonus)
    results = {slot: np.zeros((n, WIDTH)) for slot, n in LENGTHS.items()}
    done: dict[int, int] = {}
    for step in division.steps:
        sequences, counts, parts = place(device, step, done)
        tensor = upload(device, np.concatenate([inputs[slot][at] for slot, at in parts]))
        *columns, removed, added = (Columns(tensor, int(at)) for at in ends[:-1])
        removal = Removal(removed, added) if kind == "removal" else None
        out = empty(device, (counts[0], WIDTH))
        run(
            device, programs, counts,
            lambda tape, columns=columns, sequences=sequences, removal=removal, out=out: rwkv(
                tape, heads, *columns, sequences, state, out, removal=removal, bonus=own,
                scale=0.5,
            ),
        )  # fmt: skip
        found, n = read(out, None, device.queue), 0
        for slot, at in parts:
            results[slot][at] = found[n : n + len(at)]
            n += len(at)
    for slot, each in inputs.items():
        s = np.zeros((N_HEADS, SIZE, SIZE))  # head, key, value
        for t, row in enumerate(each.astype(np.float64)):
            r, w, k, v, removed, added = (row[i:j].reshape(-1, SIZE) for i, j in pairwise(ends))
            fresh = np.einsum("hk,hv->hkv", k, np.repeat(v, heads.repeat, axis=0))
            if bonus is not None:
                seen = s + bonus.reshape(N_HEADS, SIZE, 1) * fresh
            old = np.einsum("hk,hkv->hv", removed, s)
            s = s * w[:, :, None] + fresh
            if kind == "removal":
                s = s - np.einsum("hk,hv->hkv", added, old)
            expected = np.einsum("hk,hkv->hv", r, s if bonus is None else seen).reshape(-1)
            np.testing.assert_allclose(results[slot][t], 0.5 * expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("repeat", [0, 1, 2], ids=["decay alone", "keys", "shared keys"])
def test_decay_of_rwkv_6(device: Device, programs: Programs, repeat: int) -> None:
    heads, rng = RWKVHeads(N_HEADS, SIZE, repeat or 1), np.random.default_rng(4)
    (decay, keys), (d, k) = side_by_side(device, rng, (WIDTH, WIDTH // heads.repeat))
    out = empty(device, (N, WIDTH * (2 if repeat else 1)))
    run(
        device, programs, N,
        lambda tape: rwkv6_decay(tape, heads, decay, keys if repeat else None, out),
    )  # fmt: skip
    expected = [np.exp(-np.exp(d))]
    if repeat:
        shared = np.repeat(k.reshape(N, -1, SIZE), repeat, axis=1).reshape(N, WIDTH)
        expected.append(shared * (1 - expected[0]))
    found = read(out, None, device.queue)
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-6)


def test_keys_of_rwkv_7(device: Device, programs: Programs) -> None:
    heads, rng = RWKVHeads(N_HEADS, SIZE), np.random.default_rng(5)
    columns, (r, d, k, a) = side_by_side(device, rng, [WIDTH] * 4)
    vectors = rng.standard_normal((3, WIDTH), dtype=np.float32)
    weights = RWKV7Vectors(*(upload(device, each) for each in vectors))
    out = empty(device, (N, 4 * WIDTH + N_HEADS))
    run(device, programs, N, lambda tape: rwkv7_keys(tape, heads, weights, *columns, out))
    scale, by_rate, bonus = vectors.astype(np.float64)
    kept = k * (1 + (sigmoid(a) - 1) * by_rate)
    removed = (k * scale).reshape(N, N_HEADS, SIZE)
    removed = removed / np.linalg.norm(removed, axis=2, keepdims=True)
    removed = removed.reshape(N, WIDTH)
    own = (kept * r * bonus).reshape(N, N_HEADS, SIZE).sum(axis=2)
    decay = np.exp(-np.exp(-0.5) * sigmoid(d))
    expected = np.concatenate([decay, kept, removed, removed * sigmoid(a), own], axis=1)
    np.testing.assert_allclose(read(out, None, device.queue), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "size", "repeat"), [(4, 24, 1), (4, 32, 3)])
def test_heads_that_cannot_be_are_refused(n: int, size: int, repeat: int) -> None:
    with pytest.raises(ValueError, match=f"{n} heads of {size} values"):
        RWKVHeads(n, size, repeat)
