"""The line that says what a start has chosen, and why."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gguf_serve.engine.loading import reasons as chosen_for
from gguf_serve.engine.loading.assembly import slots_of
from gguf_serve.engine.loading.reasons import reasons
from gguf_serve.engine.options import EngineOptions
from gguf_serve.kernels.opencl.capabilities import ByteCodes
from gguf_serve.kernels.opencl.missing import VENDORS
from gguf_serve.kernels.opencl.platforms import DeviceInfo

INTEL = DeviceInfo(0, "Xeon", "Intel(R) OpenCL", "", "cpu", 8 << 30, 8)
POCL = DeviceInfo(1, "Xeon of PoCL", "Portable Computing Language", "", "cpu", 8 << 30, 8)
GPU = DeviceInfo(2, "H200", "NVIDIA CUDA", "", "gpu", 140 << 30, 132)


@pytest.mark.parametrize(
    ("given", "known", "chosen", "words"),
    [
        ({}, [INTEL], [INTEL], "Xeon (the only device)"),
        ({"device": "0"}, [INTEL, POCL], [INTEL], "Xeon (--device)"),
        ({}, [INTEL, POCL], [INTEL], "of 2 drivers this one is the fastest known"),
        ({}, [INTEL, GPU], [GPU], "H200 (a GPU comes before processors)"),
        ({"n_gpu_layers": 0}, [INTEL, GPU], [INTEL], "Xeon (--gpu-layers 0)"),
        ({}, [INTEL, GPU], [GPU, INTEL], "H200 and Xeon (a GPU comes"),
    ],
)
def test_devices(given: dict[str, Any], known: Any, chosen: Any, words: str) -> None:
    assert words in line(given, known, chosen)


@pytest.mark.parametrize(
    ("given", "byte_codes", "words"),
    [
        ({}, "all", "int8 (up to twice as fast here"),
        ({}, "some", "int8 for K-quants, int16 for others (up to twice as fast here"),
        ({}, "none", "int16 (nothing is faster here)"),
        ({"activation_type": "int8"}, "all", "int8 (--activation-type)"),
    ],
)
def test_activations(given: dict[str, Any], byte_codes: ByteCodes, words: str) -> None:
    assert words in line(given, [INTEL], [INTEL], byte_codes)
    assert "activations" not in line(given, [GPU], [GPU], byte_codes)


@pytest.mark.parametrize(
    ("asked", "n_ctx", "words"),
    [
        (512, 512, "512 tokens (--ctx-size)"),
        (-1, 2048, "2048 tokens (the model's)"),
        (-1, 1024, "1024 tokens (what memory has room for)"),
    ],
)
def test_context(asked: int, n_ctx: int, words: str) -> None:
    assert words in line({"n_ctx": asked}, [INTEL], [INTEL], n_ctx=n_ctx)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "4 slots of up to 2048 tokens (the default)"),
        ({"n_parallel": 2}, "2 slots of up to 1024 tokens (--parallel)"),
        ({"n_parallel": 1}, "1 slot (--parallel)"),
    ],
)
def test_slots(given: dict[str, Any], words: str) -> None:
    assert line(given, [INTEL], [INTEL]).endswith(f"; {words}")


def test_families_and_gpus_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "; kernels of the simt and simd family" in line({}, [INTEL, GPU], [GPU, INTEL])
    monkeypatch.setattr(chosen_for, "gpus_without_driver", lambda platforms: [VENDORS["0x10de"]])
    assert "(the only device; NVIDIA's GPU has no driver, " in line({}, [INTEL], [INTEL])
    assert "NVIDIA's" not in line({"device": "0"}, [INTEL], [INTEL])


def line(
    given: dict[str, Any],
    known: Any,
    chosen: Any,
    byte_codes: ByteCodes = "none",
    n_ctx: int = 2048,
) -> str:
    devices: Any = [
        SimpleNamespace(
            info=info,
            is_simd=info.kind == "cpu",
            family="simd" if info.kind == "cpu" else "simt",
            byte_codes=byte_codes,
        )
        for info in chosen
    ]
    options = EngineOptions(**given)
    n_slots = slots_of(options)
    each = n_ctx // n_slots if options.n_parallel > 0 else n_ctx
    sizes: Any = SimpleNamespace(n_slots=n_slots, n_ctx_slot=each)
    return reasons(options, known, devices, n_ctx, 2048, sizes)
