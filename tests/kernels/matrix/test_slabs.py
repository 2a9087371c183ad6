"""Matrices that one buffer cannot hold yield what whole ones do, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from launching import exact_activations, quantized, run
from msgspec.structs import replace
from random_blocks import random_matrix

from gguf_serve.kernels.matrix.embed import embed
from gguf_serve.kernels.matrix.matmul import glu, matmul
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import DeviceError
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import Tape
from gguf_serve.kernels.opencl.tensor import Tensor, read, upload, zeros
from gguf_serve.kernels.quantization.activations import Activations, activations
from gguf_serve.kernels.quantization.weights import Matrix, RawMatrix, pack, place

N_COLS, N_TOKENS = 256, 5
TYPES = ["F16", "Q4_0", "Q6_K"]
Pack = Callable[..., list[Matrix]]


@pytest.fixture
def packed(device: Device, programs: Programs) -> Pack:
    """The same matrix whole and in slabs of 512 rows at most."""

    def both(raws: list[RawMatrix], *, paired: bool = False) -> list[Matrix]:
        whole = pack(device, programs, raws, paired=paired)
        limit = whole.n_bytes * 600 // (raws[0].n_rows if paired else whole.n_rows)
        split = pack(replace(device, max_allocation=limit), programs, raws, paired=paired)
        assert [row for row, _ in split.parts] == [
            row * (2 if paired else 1) for row in range(0, 1040, 512)
        ]
        assert max(slab.n_bytes for slab in split.slabs) <= limit
        return [whole, split]

    return both


def matrix(type_name: str, n_rows: int, seed: int) -> RawMatrix:
    return random_matrix(type_name, n_rows, N_COLS, np.random.default_rng(seed))[0]


def inputs(device: Device, programs: Programs, w: Matrix) -> Activations:
    x = exact_activations(N_TOKENS, N_COLS, np.random.default_rng(5))
    if w.is_float:
        return Activations(N_COLS, values=upload(device, x))
    return quantized(device, programs, x)


def results(
    device: Device, programs: Programs, record: Callable[[Tape], None], out: Tensor
) -> np.ndarray:
    run(device, programs, N_TOKENS, record)
    return read(out, None, device.queue)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("tile", [1, 8, 32])
def test_products(
    device: Device, programs: Programs, packed: Pack, type_name: str, tile: int
) -> None:
    raws = [matrix(type_name, n, seed) for n, seed in ((528, 1), (512, 2))]
    counts = upload(device, np.full(5, N_TOKENS, np.int32))
    bias = upload(device, np.random.default_rng(1).random(1040, np.float32))
    found = []
    for w in packed(raws):
        x, out = inputs(device, programs, w), zeros(device, (N_TOKENS, 1040 + 16))
        found.append(results(
            device, programs,
            lambda tape, w=w, x=x, out=out: matmul(
                tape, w, x, out, counts, tile=tile, bias=bias, out_offset=16
            ),
            out,
        ))  # fmt: skip
    assert np.array_equal(*found)
    assert found[0][0, 16:].all()


@pytest.mark.parametrize("type_name", TYPES)
def test_gated_products(device: Device, programs: Programs, packed: Pack, type_name: str) -> None:
    raws = [matrix(type_name, 1040, seed) for seed in (1, 2)]
    counts = upload(device, np.full(5, N_TOKENS, np.int32))
    bias = upload(device, np.random.default_rng(1).random(2112, np.float32))
    found = []
    for w in packed(raws, paired=True):
        x, out = inputs(device, programs, w), activations(device, N_TOKENS, 1040, quantized=False)
        assert out.values is not None
        found.append(results(
            device, programs,
            lambda tape, w=w, x=x, out=out: glu(
                tape, w, x, out, counts, activation="silu", tile=8, bias=bias
            ),
            out.values,
        ))  # fmt: skip
    assert np.array_equal(*found)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("add", [False, True])
def test_embeddings(
    device: Device, programs: Programs, packed: Pack, type_name: str, add: bool
) -> None:
    raws = [matrix(type_name, 1040, 1)]
    ids = upload(device, np.array([1039, 0, 511, 512, 1024], np.int32))
    found = []
    for w in packed(raws):
        out = upload(device, np.ones((N_TOKENS, N_COLS), np.float32))
        found.append(results(
            device, programs,
            lambda tape, w=w, out=out: embed(tape, w, ids, out, 0.5, add=add), out,
        ))  # fmt: skip
    assert np.array_equal(*found)
    assert (found[0] != 1).any(axis=1).all()


def test_a_row_that_no_buffer_can_hold(device: Device) -> None:
    raw = matrix("F16", 1040, 1)
    with pytest.raises(DeviceError, match="can be allocated at once"):
        place(replace(device, max_allocation=1000), [raw])
