"""Which forms of products are tried, and what is made of the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyopencl as cl
import pytest
from msgspec.structs import replace

from gguf_serve.kernels.opencl.capabilities import Capabilities
from gguf_serve.kernels.opencl.compiling import features
from gguf_serve.kernels.opencl.compiling.features import (
    BYTE_FORMS,
    CPU_FORMS,
    GPU_FORMS,
    dot_defines,
    gpu_defines,
    reject,
)
from gguf_serve.kernels.opencl.compiling.probe import BYTE_PROBE, SOURCE_OF, works
from gguf_serve.kernels.opencl.compiling.worker import WorkerEndedError
from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.platforms import DeviceInfo
from gguf_serve.kernels.opencl.sources import OPTIONS

CPU = DeviceInfo(0, "CPU", "platform", "driver", "cpu", 1 << 30, 2)
GPU = replace(CPU, name="GPU", kind="gpu")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The forms that are tried; those of 512 bits, of 16 columns, and SDOT2 do not work."""
    found: list[str] = []

    class FakeWorker:
        def probe(self, form: str, seconds: float, kind: str) -> bool:
            assert form in {**CPU_FORMS, **GPU_FORMS}[kind]
            found.append(form)
            return not form.endswith(("_512", "PTX_16", "SDOT2"))

    worker = FakeWorker()
    monkeypatch.setattr(features, "take_worker", lambda info: worker)
    monkeypatch.setattr(features, "keep_worker", lambda worker: None)
    monkeypatch.setattr(features, "features_path", lambda: tmp_path / "features.json")
    monkeypatch.setattr(features, "_answers", {})
    return found


@pytest.mark.parametrize(
    ("flags", "defines"),
    [
        ({"avx2", "avx512_vnni"}, ("DOT_PAIRS_256", "DOT_BYTES_256")),
        ({"avx2", "avx_vnni"}, ("DOT_PAIRS_256", "DOT_BYTES_256")),
        ({"avx2"}, ("MADD_BYTES_256",)),
        ({"sse2"}, ()),
    ],
)
def test_the_best_that_works(
    monkeypatch: pytest.MonkeyPatch, tried: list[str], flags: set[str], defines: tuple[str, ...]
) -> None:
    monkeypatch.setattr(features, "cpu_flags", lambda: frozenset(flags))
    assert dot_defines(CPU) == defines
    before = list(tried)
    assert dot_defines(CPU) == defines
    assert tried == before  # known from the file


@pytest.mark.parametrize("allowed", [True, False])
def test_tiles_that_the_system_allows(
    monkeypatch: pytest.MonkeyPatch, tried: list[str], allowed: bool
) -> None:
    monkeypatch.setattr(features, "cpu_flags", lambda: frozenset({"amx_int8"}))
    monkeypatch.setattr(features, "allow_tiles", lambda: allowed)
    assert dot_defines(CPU) == (("TILE_BYTES",) if allowed else ())
    assert tried == (["TILE_BYTES"] if allowed else [])


@pytest.mark.parametrize(
    ("matrix", "defines", "asked"),
    [
        (("mma",), ("MMA_PTX_8",), ["MMA_PTX_16", "MMA_PTX_8"]),
        (("wmma",), ("MMA_WMMA",), ["MMA_WMMA"]),
        (("amx_int8",), (), []),  # a CPU with the kernels for GPUs
        ((), (), []),
    ],
)
def test_what_a_gpu_multiplies_tiles_by(
    tried: list[str], matrix: tuple[str, ...], defines: tuple[str, ...], asked: list[str]
) -> None:
    assert gpu_defines(replace(GPU, capabilities=Capabilities(matrix=matrix))) == defines
    assert tried == asked


@pytest.mark.parametrize(
    ("capabilities", "defines", "asked"),
    [
        (Capabilities(byte_dots=True, architecture="sm_90"), ("SHORTS_DP2A",), ["SHORTS_DP2A"]),
        (
            Capabilities(architecture="gfx1100"), ("SHORTS_SUDOT4",),
            ["SHORTS_SDOT2", "SHORTS_SUDOT4"],
        ),
        (Capabilities(byte_dots=True), ("SHORTS_PACKED",), ["SHORTS_PACKED"]),
        (Capabilities(architecture="sm_60"), (), []),
    ],
)  # fmt: skip
def test_what_a_gpu_multiplies_shorts_by(
    tried: list[str], capabilities: Capabilities, defines: tuple[str, ...], asked: list[str]
) -> None:
    assert gpu_defines(replace(GPU, capabilities=capabilities)) == defines
    assert tried == asked
    assert gpu_defines(replace(CPU, capabilities=capabilities)) == ()


def test_wrong_products_of_a_gpu_are_told_of_once(
    monkeypatch: pytest.MonkeyPatch, tried: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    gpu = replace(GPU, capabilities=Capabilities(byte_dots=True, architecture="sm_90"))
    monkeypatch.setattr(features.take_worker(gpu), "probe", lambda *asked: False)
    assert gpu_defines(gpu) == gpu_defines(gpu) == ()
    assert caplog.messages == [
        "GPU: no right products by SHORTS_DP2A, SHORTS_PACKED: kernels that do without are used"
    ]


@pytest.mark.parametrize("has_folder", [True, False])
def test_a_form_whose_programs_do_not_build(
    monkeypatch: pytest.MonkeyPatch, tried: list[str], has_folder: bool
) -> None:
    """It is not used any more, nor after a start if there is a folder for that; others are. Those
    of CPUs stay."""
    if not has_folder:
        monkeypatch.setattr(features, "features_path", lambda: None)
    found = Capabilities(byte_dots=True, architecture="sm_90", matrix=("mma",))
    gpu = replace(GPU, capabilities=found)
    assert gpu_defines(gpu) == ("MMA_PTX_8", "SHORTS_DP2A")
    assert reject(gpu, ["NT=64", "SHORTS_PACKED"]) == []
    assert reject(gpu, ["NT=64", "MMA_PTX_8", "DOT_PAIRS_512"]) == ["MMA_PTX_8"]
    assert reject(gpu, ["NT=64", "MMA_PTX_8"]) == []
    assert gpu_defines(gpu) == ("SHORTS_DP2A",)
    monkeypatch.setattr(features, "_answers", {})  # another start, which may have to try again
    assert gpu_defines(gpu) == (("SHORTS_DP2A",) if has_folder else ("MMA_PTX_8", "SHORTS_DP2A"))
    monkeypatch.setattr(features, "cpu_flags", lambda: frozenset({"avx2", "avx_vnni"}))
    forms = dot_defines(CPU)
    assert forms
    assert reject(CPU, forms) == []
    assert dot_defines(CPU) == forms


@pytest.mark.parametrize("form", ["SHORTS_DP2A_BY_HAND", "SHORTS_PACKED_BY_HAND"])
def test_the_probe_of_a_gpu_s_products_of_shorts(
    device: Device, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """By hand in place of an instruction; and one that has its operands in another order."""
    assert works(device.context, form, "shorts")
    other = SOURCE_OF["shorts"].replace("dot_quad_u(w, b[i].x", "dot_quad_u(w, b[i].y")
    monkeypatch.setitem(SOURCE_OF, "shorts", other)
    assert not works(device.context, form, "shorts")


def test_the_probe_of_a_gpu_s_tiles(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand in place of an instruction; and one that has its operands in another order."""
    assert works(device.context, "MMA_BY_HAND", "halves")
    other = SOURCE_OF["halves"].replace("load_b(tokens", "load_a(tokens")
    monkeypatch.setitem(SOURCE_OF, "halves", other)
    assert not works(device.context, "MMA_BY_HAND", "halves")


def test_the_probe_builds_every_intrinsic(device: Device) -> None:
    """That of the signs too: a compiler that does not know it would end the server."""
    if not device.is_simd:
        pytest.skip("for CPUs only")
    source = f"{BYTE_PROBE}\n#ifndef SIGNED_CODES\n#error\n#endif\n"
    cl.Program(device.context, source).build(list(OPTIONS))


def test_a_probe_without_an_answer_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, tried: list[str]
) -> None:
    class Hanging:
        def probe(self, form: str, seconds: float, kind: str) -> bool:
            raise WorkerEndedError("signal 9", late=True)

    monkeypatch.setattr(features, "cpu_flags", lambda: frozenset({"avx2"}))
    with monkeypatch.context() as patch:
        patch.setattr(features, "take_worker", lambda info: Hanging())
        assert dot_defines(CPU) == ()
    assert dot_defines(CPU) == ("MADD_BYTES_256",)


def test_a_form_that_ends_the_compiler(
    monkeypatch: pytest.MonkeyPatch, tried: list[str], tmp_path: Path
) -> None:
    """The next one is tried in another process."""

    class Crashing:
        def probe(self, form: str, seconds: float, kind: str) -> bool:
            raise WorkerEndedError("signal 11", late=False)

    workers: list[Any] = [Crashing()]
    other = features.take_worker(CPU)
    monkeypatch.setattr(features, "cpu_flags", lambda: frozenset({"avx_vnni"}))
    monkeypatch.setattr(features, "CPU_FORMS", {"bytes": BYTE_FORMS})
    monkeypatch.setattr(features, "take_worker", lambda info: workers.pop() if workers else other)
    assert dot_defines(CPU) == ("DOT_BYTE_INTS_256",)


def test_which_processors_multiply_bytes() -> None:
    assert Capabilities(forms=("MADD_BYTES_256",)).byte_codes == "all"
    both = Capabilities(forms=("DOT_PAIRS_512", "DOT_BYTES_512"))
    assert both.multiplies_pairs
    assert both.byte_codes == "some"  # shorts do as well, half as fast
    tiles = replace(both, forms=(*both.forms, "TILE_BYTES"))
    assert tiles.byte_codes == "none"
    assert Capabilities().byte_codes == "none"


def test_a_device_has_what_is_asked_for(device: Device) -> None:
    index = str(device.info.index)
    asked = open_device(index, family=device.family, byte_codes="all")
    assert asked.byte_codes == ("all" if device.is_simd else "none")
    assert open_device(index, family=device.family, byte_codes="none").byte_codes == "none"
