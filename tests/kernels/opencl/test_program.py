"""Programs: built once, by several threads, with the compiler's word on what is wrong."""

from __future__ import annotations

import threading
import warnings

import pyopencl as cl
import pytest

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import BuildError, Programs
from gguf_serve.kernels.quantization.quants import by_name


def test_a_kernel_that_does_not_compile(programs: Programs) -> None:
    with pytest.raises(BuildError, match=r"embed\.cl with .*TYPE_Q99"):
        programs.kernel("matrix/embed.cl", "embed", ["TYPE_Q99"])


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


def test_compilers_remarks_are_not_shown_whoever_builds(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two threads remarks something when the first has left; then all is as was."""
    overlap, first_left = threading.Barrier(2), threading.Event()

    class RemarkingProgram:
        def __init__(self, context: object, text: str) -> None:
            pass

        def build(self, options: list[str]) -> None:
            overlap.wait(10)
            if "-DSECOND" in options:
                first_left.wait(10)
            warnings.warn("a remark", cl.CompilerWarning, stacklevel=2)

    monkeypatch.setattr(cl, "Program", RemarkingProgram)
    monkeypatch.setattr(Programs, "are_kept_by_driver", True)  # compiled in this process
    programs, errors, before = Programs(device), [], warnings.filters.copy()

    def build(define: str) -> None:
        try:
            programs.build("matrix/embed.cl", [define])
        except Warning as remark:
            errors.append(remark)

    threads = [threading.Thread(target=build, args=[name]) for name in ("FIRST", "SECOND")]
    for thread in threads:
        thread.start()
    threads[0].join(10)
    first_left.set()
    threads[1].join(10)
    assert errors == []
    assert warnings.filters == before
