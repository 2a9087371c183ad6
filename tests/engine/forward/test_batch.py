"""A step's inputs on the device: tokens, places, tiles and tables of a plan."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from stepping import sequence

from gguf_serve.engine.forward.batch import Batch, OutputRow
from gguf_serve.engine.request import Grid
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.kernels.attention.kv import PAGE
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tensor import Tensor, read


@pytest.fixture
def batch(device: Device) -> Batch:
    return Batch(device, n_tokens=96, n_outputs=8, n_sequences=3, n_ctx=640, n_vocab=100)


def numbers(device: Device, tensor: Tensor, n: int) -> list:
    return read(tensor, n, device.queue).tolist()


def test_chunks_in_one_step(device: Device, batch: Batch) -> None:
    """A piece of a prompt over a page's end, a single token, and a whole short prompt."""
    long = sequence(range(70), 2, [5, 9, 4])
    single = sequence(range(100, 400), 0, [20, 21, 22, 23, 24, 25, 26, 27, 28, 29])
    short = sequence([7, 8, 9], 1, [11])
    chunks = [Chunk(long, 30, 5, "none"), Chunk(single, 299, 1, "last"), Chunk(short, 0, 3, "all")]
    rows = [OutputRow(chunks[1], 299, 40), *(OutputRow(chunks[2], i, 3, 60 + i) for i in range(3))]
    counts = batch.fill(chunks, rows, tile=2)
    assert counts == (9, 4, 6, 2, 3, 0)
    inputs = batch.inputs
    assert numbers(device, inputs.counts, 6) == list(counts)
    assert numbers(device, inputs.tokens, 9) == [30, 31, 32, 33, 34, 399, 7, 8, 9]
    assert numbers(device, inputs.attention.positions, 9) == [30, 31, 32, 33, 34, 299, 0, 1, 2]
    places = [(5, 30), (5, 31), (9, 0), (9, 1), (9, 2), (29, 11), (11, 0), (11, 1), (11, 2)]
    assert numbers(device, inputs.slot_mapping, 9) == [page * PAGE + row for page, row in places]
    assert numbers(device, inputs.rows, 4) == [5, 6, 7, 8]
    assert [row[:3] for row in numbers(device, inputs.topk.wanted, 4)] == [
        [40, 0, -1], [3, 60, -1], [3, 61, -1], [3, 62, -1],
    ]  # fmt: skip
    tiles = [
        (0, 2, 2, 35), (2, 2, 2, 35), (4, 1, 2, 35), (5, 1, 0, 300), (6, 2, 1, 3), (8, 1, 1, 3)
    ]  # fmt: skip
    assert [tuple(tile) for tile in numbers(device, inputs.attention.tiles, 6)] == tiles
    segments = [(0, 5, 2, 30), (5, 1, 0, 299), (6, 3, 1, 0)]
    assert [tuple(row) for row in numbers(device, inputs.sequences, 3)] == segments
    tables = read(inputs.attention.tables, None, device.queue)
    for seq in (long, single, short):
        assert tables[seq.slot, : len(seq.table)].tolist() == seq.table


def test_positions_of_the_first_tokens_of_blocks(device: Device) -> None:
    """They may have been in an earlier step, or in an image."""
    sizes = {"n_tokens": 96, "n_outputs": 8, "n_sequences": 3, "n_ctx": 64, "n_vocab": 100}
    plain = Batch(device, **sizes, block=4)
    plain.fill([Chunk(sequence(range(20), 0, [3]), 6, 7, "none")], [], 1)
    assert plain.inputs.block_positions is not None
    assert numbers(device, plain.inputs.block_positions, 7) == [4, 4, 8, 8, 8, 8, 12]

    seq = sequence(range(20), 0, [3])
    seq.request = replace(seq.request, grids=(Grid(2, rows=2, columns=3),))
    sections = Batch(device, **sizes, sections=True, block=4)
    sections.fill([Chunk(seq, 7, 3, "none")], [], 1)
    tensors = sections.inputs.rope_positions, sections.inputs.block_positions
    places, starts = (numbers(device, tensor, 3) for tensor in tensors if tensor is not None)
    assert places == [[2, 3, 4, 0], [5, 5, 5, 5], [6, 6, 6, 6]]
    assert starts == [[2, 2, 4, 0], [5, 5, 5, 5], [5, 5, 5, 5]]


def test_tables_follow_the_sequence_in_a_slot(device: Device, batch: Batch) -> None:
    first = sequence(range(40), 1, [3, 8])
    batch.fill([Chunk(first, 0, 40, "none")], [], 1)
    first.table.append(6)  # a page for what is generated
    batch.fill([Chunk(first, 39, 1, "none")], [], 1)
    tables = batch.inputs.attention.tables
    assert read(tables, None, device.queue)[1, :3].tolist() == [3, 8, 6]
    second = sequence([1, 2], 1, [7])
    batch.fill([Chunk(second, 0, 2, "none")], [], 1)
    assert read(tables, None, device.queue)[1, 0] == 7


def test_later_steps_do_not_disturb_earlier_ones(device: Device, batch: Batch) -> None:
    """Writes are enqueued: the device has the numbers of the latest step when it is read."""
    for n in (96, 1, 50):
        seq = sequence(np.arange(n) % 100, 0, list(range(3)))
        counts = batch.fill([Chunk(seq, 0, n, "none")], [], 32)
        assert counts == (n, 0, -(-n // 32), 1, 1, 0)
        assert numbers(device, batch.inputs.tokens, n) == seq.tokens


@pytest.mark.parametrize(("end", "parts"), [(256, 1), (257, 2), (512, 2), (513, 3)])
def test_parts_of_the_longest_context(batch: Batch, end: int, parts: int) -> None:
    seq = sequence([0] * end, 0, list(range(20)))
    short = sequence([0], 1, [21])
    chunks = [Chunk(seq, end - 1, 1, "last"), Chunk(short, 0, 1, "last")]
    assert batch.fill(chunks, [], 1) == (2, 0, 2, parts, 2, 0)
