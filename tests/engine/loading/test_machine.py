"""From options to devices, and what is said of devices that are not there."""

from __future__ import annotations

from typing import Any

import pytest
from variants import processor

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.loading import machine
from gguf_serve.engine.options import EngineOptions
from gguf_serve.kernels.opencl.capabilities import ByteCodes
from gguf_serve.kernels.opencl.platforms import DeviceError, DeviceInfo

CPU = DeviceInfo(0, "Xeon", "Intel(R) OpenCL", "", "cpu", 8 << 30, 8)
BIG = DeviceInfo(1, "H200", "NVIDIA CUDA", "", "gpu", 140 << 30, 132)
SMALL = DeviceInfo(2, "A2", "NVIDIA CUDA", "", "gpu", 16 << 30, 10)
OTHER = DeviceInfo(3, "Radeon", "rusticl", "", "gpu", 4 << 30, 12)
LARGE = 7_000_000_000  # parameters


@pytest.fixture(autouse=True)
def devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "list_devices", lambda n_threads: [CPU, SMALL, BIG, OTHER])


@pytest.mark.parametrize(
    ("given", "with_layers"),
    [
        ({}, [BIG, SMALL]),
        ({"n_gpu_layers": 0}, [CPU]),
        ({"device": "none"}, [CPU]),
        ({"device": "radeon,0"}, [OTHER, CPU]),
        ({"split_mode": "none"}, [BIG]),
        ({"split_mode": "none", "main_gpu": 1}, [SMALL]),
        ({"tensor_split": (1.0, 3.0)}, [BIG, SMALL]),
        ({"tensor_split": (1.0, 3.0, 2.0)}, [BIG, SMALL]),
        ({"tensor_split": (1.0,)}, [BIG, SMALL]),
        ({"main_gpu": 1}, [BIG, SMALL]),
    ],
)
def test_devices_that_have_layers(given: dict[str, Any], with_layers: list[DeviceInfo]) -> None:
    found = machine.find_machine(EngineOptions(**given), LARGE)
    assert list(found.infos[: found.n_offload]) == with_layers
    assert found.cpu is not None
    assert found.infos[found.cpu] is CPU


def test_overrides_may_name_further_devices() -> None:
    given = EngineOptions(device="h200", override_tensor=("exps=CPU", "a=b=radeon"))
    found = machine.find_machine(given, LARGE)
    assert [(p, found.infos[at]) for p, at in found.overrides] == [("exps", CPU), ("a=b", OTHER)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "0,vega"}, "no OpenCL device 'vega'; there are 0: Xeon"),
        ({"device": "1,h200"}, "'1,h200' names a device twice"),
        ({"tensor_split": (0.0, 0.0, 1.0)}, "nothing to the first 2 devices: H200, A2"),
        ({"split_mode": "row"}, "--split-mode row is not supported"),
        ({"main_gpu": 2, "split_mode": "none"}, "--main-gpu 2: .* among 0: H200, 1: A2"),
        ({"override_tensor": ("exps",)}, "'exps' is not a pattern, '=' and a device"),
        ({"override_tensor": ("exps=vega",)}, "no OpenCL device 'vega'"),
    ],
)
def test_devices_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises((EngineError, DeviceError), match=message):
        machine.find_machine(EngineOptions(**given), LARGE)


@pytest.mark.parametrize(
    ("activation_type", "n_parameters", "found", "expected"),
    [
        ("auto", 135_000_000, "all", "some"),
        ("auto", 135_000_000, "none", "none"),
        ("auto", LARGE, "all", "all"),
        ("int8", 135_000_000, "all", "all"),
    ],
)
def test_small_models_keep_more_than_8_bits(
    monkeypatch: pytest.MonkeyPatch,
    activation_type: str,
    n_parameters: int,
    found: ByteCodes,
    expected: ByteCodes,
) -> None:
    """Unless they are told otherwise, but for K-quants."""
    device = processor(["MADD_BYTES_256"], byte_codes=found)
    monkeypatch.setattr(machine, "open_device", lambda *wanted, **how: device)
    options = EngineOptions(activation_type=activation_type)
    assert machine.find_machine(options, n_parameters).open(0).byte_codes == expected
