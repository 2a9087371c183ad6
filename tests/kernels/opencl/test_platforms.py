"""Finding drivers, choosing a device, and what is said when there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from msgspec.structs import replace

import gguf_serve
from gguf_serve.kernels.opencl import platforms
from gguf_serve.kernels.opencl.drivers import LOADER_VARIABLES, bundled_drivers
from gguf_serve.kernels.opencl.platforms import DeviceError, DeviceInfo, choose

INTEL = DeviceInfo(0, "Intel(R) Xeon(R)", "Intel(R) OpenCL", "OpenCL 3.0", "cpu", 8 << 30, 8)
POCL = replace(
    INTEL, index=1, name="pthread-Intel(R) Xeon(R)", platform="Portable Computing Language"
)
SMALL_GPU = DeviceInfo(2, "Radeon 780M", "rusticl", "OpenCL 3.0", "gpu", 4 << 30, 12)
LARGE_GPU = DeviceInfo(3, "NVIDIA H200", "NVIDIA CUDA", "OpenCL 3.0", "gpu", 140 << 30, 132)
ALL = [INTEL, POCL, SMALL_GPU, LARGE_GPU]


@pytest.mark.parametrize(
    ("infos", "use_gpu", "best"),
    [
        (ALL, True, LARGE_GPU),
        (ALL[:3], True, SMALL_GPU),
        (ALL, False, INTEL),
        ([POCL, INTEL], True, INTEL),
        ([POCL], True, POCL),
        ([SMALL_GPU], False, SMALL_GPU),  # better than none
    ],
)
def test_the_best_device(infos: list[DeviceInfo], use_gpu: bool, best: DeviceInfo) -> None:
    assert choose(infos, None, use_gpu) is best


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("0", INTEL), ("3", LARGE_GPU), ("radeon", SMALL_GPU), ("H200", LARGE_GPU),
     ("portable", POCL), ("intel", INTEL), ("CUDA", LARGE_GPU)],
)  # fmt: skip
def test_a_device_by_index_or_part_of_a_name(wanted: str, found: DeviceInfo) -> None:
    assert choose(ALL, wanted) is found
    assert choose(ALL[::-1], wanted) is found


def test_an_unknown_device_lists_the_others() -> None:
    with pytest.raises(DeviceError) as caught:
        choose(ALL, "vega")
    message = str(caught.value)
    assert "'vega'" in message
    for info in ALL:
        assert f"{info.index}: {info.name} ({info.platform})" in message


@pytest.mark.parametrize("wanted", [None, "0"])
def test_no_driver_names_what_to_install(wanted: str | None) -> None:
    with pytest.raises(DeviceError, match=r"no OpenCL driver.*pocl-opencl-icd"):
        choose([], wanted)


def test_no_folder_for_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Shared memory takes its place; without that the driver is not found, which is said."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    monkeypatch.setattr(platforms, "SHARED_MEMORY", str(tmp_path))
    folder = platforms._vendor_folder([Path("/lib/libx.so")])
    assert folder is not None
    assert (tmp_path / folder / "libx.icd").read_text() == "/lib/libx.so\n"
    monkeypatch.setattr(platforms, "SHARED_MEMORY", str(tmp_path / "none"))
    assert platforms._vendor_folder([Path("/lib/libx.so")]) is None
    assert "/lib/libx.so is not found without a folder for temporary files" in caplog.text


# The loader reads its variables once, so each of these needs a process of its own.

PRINT_DEVICES = """
import json, os
from gguf_serve.kernels.opencl.drivers import LOADER_VARIABLES
from gguf_serve.kernels.opencl.platforms import list_devices
found = list_devices()
print(json.dumps([{name: os.environ.get(name) for name in LOADER_VARIABLES}, len(found)]))
"""


def devices_of_process(**variables: str) -> tuple[dict[str, str | None], int]:
    """The loader's variables after the devices were listed, and how many there are."""
    inherited = {k: v for k, v in os.environ.items() if k not in LOADER_VARIABLES}
    root = str(Path(gguf_serve.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", PRINT_DEVICES], env=inherited | variables, cwd=root,
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    variables_after, n = json.loads(result.stdout)
    return variables_after, n


@pytest.mark.parametrize("name", ["OPENCL_VENDOR_PATH", "OCL_ICD_VENDORS"])
def test_a_loader_variable_of_the_user_is_left_alone(name: str, tmp_path: Path) -> None:
    variables, n = devices_of_process(**{name: str(tmp_path)})
    assert variables[name] == str(tmp_path)
    assert n == 0


@pytest.mark.skipif(not bundled_drivers(), reason="no driver was installed by pip")
def test_a_bundled_driver_is_found_and_leaves_no_trace() -> None:
    variables, n = devices_of_process()
    assert variables == dict.fromkeys(LOADER_VARIABLES)
    assert n > 0
