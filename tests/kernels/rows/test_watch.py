"""Watching for values that are not finite."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from launching import run

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import upload
from gguf_serve.kernels.rows.watch import mark_room, take_mark, watch


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_the_least_mark_is_kept(device: Device, programs: Programs, value: float) -> None:
    clean = np.full((5, 70), 3e38, np.float32)
    rows = [clean.copy() for _ in range(3)]
    rows[1][3, 69] = rows[2][0, 0] = value
    rows[0][4, 5] = value  # beyond the step's rows
    tensors, first = [upload(device, x) for x in rows], mark_room(device)

    def record(*order: int) -> None:
        for i in order:
            run(device, programs, 4, partial(watch, x=tensors[i], mark=i - 1, first=first))

    assert take_mark(device, first) is None
    record(0)
    assert take_mark(device, first) is None
    record(0, 2, 1)
    assert take_mark(device, first) == 0
    assert take_mark(device, first) is None
    record(2)
    assert take_mark(device, first) == 1
