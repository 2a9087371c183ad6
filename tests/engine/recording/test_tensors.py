"""Matrices of a file, and what becomes of their parts."""

from __future__ import annotations

from pathlib import Path

import gguf as oracle
import numpy as np
import pytest
from variants import processor

from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.recording.tensors import JOINED_BYTES, TensorSource

N_ROWS, N_COLS = 48, 64
VALUES = np.arange(N_ROWS * N_COLS, dtype=np.float32).reshape(N_ROWS, N_COLS)
BIAS = np.arange(N_ROWS, dtype=np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "model.gguf"
    writer = oracle.GGUFWriter(found, "llama")
    writer.add_tensor("w.weight", VALUES)
    writer.add_tensor("w.bias", BIAS)
    writer.add_tensor("half.weight", VALUES.astype(np.float16))
    writer.add_tensor("large.weight", np.zeros((3, JOINED_BYTES // 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def test_parts_of_few_rows_become_one_matrix(path: Path) -> None:
    """As those of heads, of which every other row belongs to beta."""
    with open_gguf(path) as gguf:
        source = TensorSource(gguf, processor(()))
        whole = source.part("w")
        parts = [whole.rows(at, at + 3) for at in (*range(0, 48, 6), *range(3, 48, 6))]
        (linear,) = source.stacked(parts)
        order = [row for part in range(0, 48, 6) for row in range(part, part + 3)]
        order += [row for part in range(3, 48, 6) for row in range(part, part + 3)]
        packed = np.concatenate([job.part.data.view(np.float32) for job in source.jobs])
        assert np.array_equal(packed.reshape(N_ROWS, N_COLS), VALUES[order])
        assert linear.matrix.n_rows == N_ROWS
        assert linear.bias is not None
        assert source.placed == {}  # nobody finds it by its place in the file


def test_parts_that_cannot_be_one_matrix(path: Path) -> None:
    with open_gguf(path) as gguf:
        source = TensorSource(gguf, processor(()))
        w, half, large = source.part("w"), source.part("half"), source.part("large")
        assert [x.offset for x in source.stacked([w.rows(0, 3), half.rows(0, 3)])] == [0, 3]
        assert [x.offset for x in source.stacked([large.rows(0, 1), large.rows(1, 2)])] == [0, 1]
        assert len(source.stacked([w.rows(0, 16), w.rows(16, 32)])) == 1  # packed as they lie
        assert len(source.placed) == 5
