"""What drivers say of devices, and what is made of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pyopencl as cl
import pytest

from gguf_serve.kernels.opencl.capabilities import Capabilities, cpu_flags, read_capabilities
from gguf_serve.kernels.opencl.device import Device


def raw(**known: Any) -> SimpleNamespace:
    """A driver's device; what is not ``known`` it has no answer to."""
    always = {"name": "GPU", "extensions": "", "max_work_group_size": 256, "local_mem_size": 65536}
    return SimpleNamespace(**{**always, **known})


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (
            raw(
                name="NVIDIA H200", warp_size_nv=32, compute_capability_major_nv=9,
                compute_capability_minor_nv=0, max_work_group_size=1024,
            ),
            Capabilities(1024, 65536, 32, False, True, ("mma",), "sm_90"),
        ),
        (
            raw(name="NVIDIA", compute_capability_major_nv=6, compute_capability_minor_nv=0),
            Capabilities(256, 65536, architecture="sm_60"),
        ),
        (
            raw(
                name="gfx90a:sramecc+:xnack-", wavefront_width_amd=64,
                extensions="cl_khr_fp16 cl_khr_integer_dot_product",
            ),
            Capabilities(256, 65536, 64, True, True, ("mfma",), "gfx90a"),
        ),
        (
            raw(extensions="cl_khr_fp16 cl_intel_subgroup_matrix_multiply_accumulate"),
            Capabilities(
                256, 65536, 0, True,
                matrix=("cl_intel_subgroup_matrix_multiply_accumulate",),
            ),
        ),
    ],
)  # fmt: skip
def test_gpus(device: SimpleNamespace, expected: Capabilities) -> None:
    assert read_capabilities(device, is_cpu=False) == expected


def test_a_driver_that_fails_to_answer() -> None:
    class Failing:
        name, extensions, max_work_group_size, local_mem_size = "GPU", "", 64, 1024

        def __getattr__(self, name: str) -> int:
            raise cl.LogicError(name)

    assert read_capabilities(Failing(), is_cpu=False) == Capabilities(64, 1024)


def test_a_processor_with_matrix_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        f"{Capabilities.__module__}.cpu_flags", lambda: frozenset({"avx2", "amx_int8"})
    )
    found = read_capabilities(raw(), is_cpu=True)
    assert (found.subgroup, found.matrix) == (1, ("amx_int8",))


def test_in_words() -> None:
    found = Capabilities(1024, 48 << 10, 32, True, True, ("mma",), "sm_90")
    assert str(found) == (
        "sm_90, work-groups of 1024, 48 KiB local, subgroups of 32, halves, byte dot products, mma"
    )


def test_this_device_s(device: Device) -> None:
    found = device.capabilities
    assert found.work_group >= 1
    assert found.local_bytes >= 1 << 10
    assert device.defines == (found.forms if device.is_simd else ("SIMT",))
    assert {form.endswith("_512") for form in found.forms} <= {
        False, "avx512_vnni" in cpu_flags()
    }  # fmt: skip


def test_work_groups_of_a_row(device: Device) -> None:
    assert device.group(1) == 1
    assert device.group(100) == (1 if device.is_simd else 64)
