"""What ``serve doctor`` finds out: real devices, faulty ones, and the sizes that fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_serve.engine.loading import examination
from gguf_serve.engine.loading.examination import (
    Examined,
    Measured,
    MeasurementError,
    fits,
    is_writable,
    measured_aside,
)
from gguf_serve.engine.loading.reasons import ACTIVATION_NAMES
from gguf_serve.kernels.opencl.platforms import DeviceInfo

GIB = 2**30
CPU = DeviceInfo(0, "Xeon", "Intel(R) OpenCL", "", "cpu", 8 * GIB, 8)


def device(free: int, *rates: float) -> Examined:
    measured = Measured("simd", "int8", *rates) if rates else None
    return Examined(CPU, free, is_chosen=True, measured=measured)


def test_a_real_device_is_measured_aside() -> None:
    found = measured_aside(0, 0.0)
    assert found.family == "simd"
    assert found.activations in ACTIVATION_NAMES.values()
    assert found.bytes_per_second > 1e7
    assert found.macs_per_second > 1e7


def test_a_device_that_is_not_there_is_told() -> None:
    with pytest.raises(MeasurementError, match="no OpenCL device '99'"):
        measured_aside(99, 0.0)


def test_what_faulty_drivers_do_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(examination.__file__).parent
    monkeypatch.setattr(examination, "MOST_SECONDS", 0.01)
    with pytest.raises(MeasurementError, match=r"no answer within 0 seconds"):
        measured_aside(0, 0.0)
    monkeypatch.setattr(examination.sys, "executable", str(folder / "none"))
    with pytest.raises(MeasurementError, match="no process can be started"):
        measured_aside(0, 0.0)


def test_a_driver_that_ends_the_process_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = tmp_path / "python"
    ends.write_text("#!/bin/sh\nkill -SEGV $$\n")
    ends.chmod(0o700)
    monkeypatch.setattr(examination.sys, "executable", str(ends))
    with pytest.raises(MeasurementError, match="ended the process by signal 11"):
        measured_aside(0, 0.0)


def test_sizes() -> None:
    found = list(fits([device(9 * GIB, 40e9, 400e9)], GIB))
    by_size = {(fit.n_parameters, fit.file_type): fit for fit in found}
    eight = by_size[8e9, "Q4_K_M"]
    assert eight.n_bytes == 4.9e9
    assert eight.fits
    assert eight.generated_per_second == pytest.approx(40 / 4.9)
    assert eight.read_per_second == 50
    assert not by_size[8e9, "Q8_0"].fits  # 8.5 GB, and an eighth, in 8 GiB
    assert by_size[8e9, "Q8_0"].generated_per_second == 0


def test_sizes_over_several_devices() -> None:
    two = [device(3 * GIB, 40e9, 1e9), device(4 * GIB, 10e9, 4e9)]
    one = next(fit for fit in fits(two, GIB) if fit.n_parameters == 8e9)
    assert one.fits == (5 * GIB >= 4.9e9 * 1.125)
    slow = next(iter(fits(two, GIB)))
    assert slow.generated_per_second == pytest.approx(10e9 / slow.n_bytes)
    assert next(iter(fits([two[0], device(GIB)], 0))).generated_per_second == 0


def test_folders_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_writable(tmp_path / "later" / "still")
    assert not is_writable(None)
    (tmp_path / "file").touch()
    assert not is_writable(tmp_path / "file")
    monkeypatch.setattr(examination.os, "access", lambda path, mode: False)
    assert not is_writable(tmp_path)
