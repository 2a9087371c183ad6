"""Fixtures: every OpenCL device of this machine, in each kernel family that it can run.

A CPU runs both families, so that the code for GPUs is never untested.
"""

from __future__ import annotations

import pytest

from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.platforms import list_devices
from gguf_serve.kernels.opencl.program import Programs

FAMILIES = {"cpu": ("simd", "simt")}
VARIANTS = [
    pytest.param(
        (str(info.index), family), id=f"{info.platform.split()[0].split('(')[0].lower()}-{family}"
    )
    for info in list_devices()
    for family in FAMILIES.get(info.kind, ("simt",))
] or [pytest.param(None, marks=pytest.mark.skip(reason="no OpenCL device"))]


@pytest.fixture(scope="session", params=VARIANTS)
def device(request: pytest.FixtureRequest) -> Device:
    index, family = request.param
    return open_device(index, family=family, byte_codes=False)


@pytest.fixture(scope="session")
def programs(device: Device) -> Programs:
    return Programs(device)
