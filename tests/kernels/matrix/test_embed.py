"""Embeddings of tokens beside those that an encoder gives, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from launching import run

from gguf_serve.kernels.matrix.embed import deepstack, embed
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.quantization.weights import pack, raw_matrix

WIDTH, IDS = 72, np.array([3, -1, 0, -2, 7], np.int32)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def test_rows_of_an_encoder_in_place_of_tokens(device: Device, programs: Programs) -> None:
    table, media = random(16, WIDTH), random(2, 2 * WIDTH, 1).reshape(2, 2 * WIDTH)
    matrix = pack(
        device, programs, [raw_matrix(table.view(np.uint8).reshape(-1), "F32", 16, WIDTH)]
    )
    ids, rows, out = upload(device, IDS), upload(device, media), empty(device, (5, WIDTH))
    run(
        device, programs, 5,
        lambda tape: embed(tape, matrix, ids, out, 2.0, media=rows),
        lambda tape: deepstack(tape, matrix, ids, rows, WIDTH, out),
    )  # fmt: skip
    whole = [2 * table[i] if i >= 0 else media[-1 - i, :WIDTH] + media[-1 - i, WIDTH:] for i in IDS]
    np.testing.assert_allclose(read(out, None, device.queue), np.stack(whole), rtol=1e-6)


def test_a_row_in_place_of_an_encoder(device: Device, programs: Programs) -> None:
    table = random(16, WIDTH)
    matrix = pack(
        device, programs, [raw_matrix(table.view(np.uint8).reshape(-1), "F32", 16, WIDTH)]
    )
    ids, out = upload(device, IDS), empty(device, (5, WIDTH))
    run(device, programs, 5, lambda tape: embed(tape, matrix, ids, out, padded=True))
    assert np.array_equal(read(out, None, device.queue), table[np.maximum(IDS, 0)])


def test_a_part_that_the_rows_do_not_have_is_refused(device: Device, programs: Programs) -> None:
    matrix = pack(
        device, programs, [raw_matrix(np.zeros(16 * WIDTH * 4, np.uint8), "F32", 16, WIDTH)]
    )
    ids, rows, out = upload(device, IDS), empty(device, (2, WIDTH)), empty(device, (5, WIDTH))
    with pytest.raises(ValueError, match="values 72 to 144 of rows of 72"):
        run(device, programs, 0, lambda tape: deepstack(tape, matrix, ids, rows, WIDTH, out))
