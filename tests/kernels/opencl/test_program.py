"""Programs: built once, by several threads, with the compiler's word on what is wrong."""

from __future__ import annotations

import pytest

from gguf_serve.kernels.opencl.compiling.compile_worker import compile_program
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import BuildError, Programs
from gguf_serve.kernels.quantization.quants import by_name


def test_a_kernel_that_does_not_compile(programs: Programs) -> None:
    with pytest.raises(BuildError, match=r"embed\.cl with PARTS=0"):
        programs.kernel("matrix/embed.cl", "embed", ["PARTS=0"])


def test_programs_are_built_once_per_set_of_defines(programs: Programs) -> None:
    first = programs.build("attention/rope.cl", ["PAGE=32", "HDV=16"])
    assert programs.build("attention/rope.cl", ["HDV=16", "PAGE=32"]) is first
    assert programs.build("attention/rope.cl", ["HDV=32", "PAGE=32"]) is not first


def test_every_kernel_object_is_new(programs: Programs) -> None:
    """Each launch has arguments of its own."""
    kernels = [
        programs.kernel("matrix/embed.cl", "embed", by_name("F32").defines) for _ in range(2)
    ]
    assert kernels[0] is not kernels[1]


def test_compilers_remarks_are_no_warnings(device: Device) -> None:
    """Here a warning is an error."""
    compile_program(device.context, "#warning a remark\nkernel void nothing() {}", [])
