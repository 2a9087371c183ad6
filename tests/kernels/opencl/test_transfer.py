"""Rows from one device to another: whichever of the two computes in host memory."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.platforms import list_devices
from gguf_serve.kernels.opencl.tensor import read, upload, zeros
from gguf_serve.kernels.opencl.transfer import Transfer


@pytest.mark.parametrize("unified", [(True, True), (False, True), (False, False)])
def test_the_rows_of_a_step_arrive(device: Device, unified: tuple[bool, bool]) -> None:
    last = list_devices()[-1]
    source = replace(device, unified_memory=unified[0])
    target = replace(open_device(str(last.index)), unified_memory=unified[1])
    array = np.random.default_rng(0).random((5, 24), np.float32)
    x, y = upload(source, array), zeros(target, (5, 24))
    for n in (1, 3):
        Transfer(source, x, target, y).run((n, 0, 0, 0, 0))
        result = read(y, None, target.queue)
        assert np.array_equal(result[:n], array[:n])
        assert not result[n:].any()


def test_no_row(device: Device) -> None:
    """Of a prompt's middle none is wanted."""
    x = upload(device, np.ones((5, 24), np.float32))
    y = zeros(device, (5, 24))
    Transfer(device, x, device, y).run((0, 0, 0, 0, 0))
    assert not read(y, None, device.queue).any()


def test_other_rows_are_refused(device: Device) -> None:
    with pytest.raises(ValueError, match=r"\(5, 24\) cannot go to float32 \(5, 25\)"):
        Transfer(device, zeros(device, (5, 24)), device, zeros(device, (5, 25)))
