"""What an opened device says of itself."""

from __future__ import annotations

import pytest

from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.platforms import DeviceError, list_devices


def test_an_unknown_family_is_refused(device: Device) -> None:
    with pytest.raises(DeviceError, match="'scalar'"):
        open_device(str(device.info.index), family="scalar")


def test_an_open_device(device: Device) -> None:
    assert device.info in list_devices()
    assert device.is_simd == (device.family == "simd")
    assert device.info.compute_units > 0
    assert device.info.memory_bytes > 0
    assert 0 < device.max_allocation <= device.info.memory_bytes
    device.finish()
