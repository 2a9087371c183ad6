"""``serve doctor``: its text and its JSON, of a machine with a GPU, a faulty driver and a gap."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gguf_serve.engine.loading.examination import Examination, Examined, Measured, fits
from gguf_serve.kernels.opencl.platforms import DeviceInfo
from gguf_serve.server import cli
from gguf_serve.server.doctor import command

GIB = 2**30
GPU = DeviceInfo(0, "H200", "NVIDIA CUDA", "OpenCL 3.0", "gpu", 140 * GIB, 132)
CPU = DeviceInfo(1, "Xeon", "Portable Computing Language", "OpenCL 3.0", "cpu", 8 * GIB, 8)
GOOD = Examined(GPU, 141 * GIB, True, Measured("simt", "int16", 4e12, 30e12, "SHORTS_DP2A"))
BAD = Examined(CPU, 8 * GIB, False, None, "its driver ended the process by signal 11")


def examination(*devices: Examined) -> Examination:
    chosen = [one for one in devices if one.is_chosen]
    return Examination(
        devices, "a GPU comes before processors" if chosen else "",
        ("AMD's GPU has no OpenCL driver: apt-get install it",), GIB, tuple(fits(chosen, GIB)),
    )  # fmt: skip


def asked(monkeypatch: pytest.MonkeyPatch, found: Examination, *args: str) -> Result:
    monkeypatch.setattr(command, "examine", lambda: found)
    monkeypatch.setattr(command.other_commands, "notices", lambda: ["serve is Ray's"])
    return CliRunner().invoke(cli.main, ["doctor", *args], prog_name="gguf-serve")


def test_text(monkeypatch: pytest.MonkeyPatch) -> None:
    result = asked(monkeypatch, examination(GOOD, BAD))
    assert result.exit_code == 0
    for words in (
        "0: H200 (gpu, 141.0 GiB free, 132 compute units)",
        "reads 4000.0 GB and does 30000 billion multiply-adds a second; kernels of the simt family",
        "has multiplied right by SHORTS_DP2A",
        "does not work: its driver ended the process by signal 11",
        "A start takes 0: a GPU comes before processors.",
        "AMD's GPU has no OpenCL driver: apt-get install it",
        "serve is Ray's",
        "39.9 GiB, 93 t/s",
        "130.4 GiB, no room",
    ):
        assert words in result.output


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = json.loads(asked(monkeypatch, examination(GOOD, BAD), "--json").output)
    assert found["devices"][0]["measured"]["bytes_per_second"] == 4e12
    assert found["devices"][1]["fault"].endswith("signal 11")
    assert found["missing"] == ["AMD's GPU has no OpenCL driver: apt-get install it"]
    assert found["notices"] == ["serve is Ray's"]
    assert {fit["file_type"] for fit in found["fits"] if fit["fits"]} == {"Q4_K_M", "Q8_0", "F16"}


@pytest.mark.parametrize("devices", [(), (BAD,)])
def test_without_a_device_that_works(monkeypatch: pytest.MonkeyPatch, devices: Any) -> None:
    result = asked(monkeypatch, examination(*devices))
    assert result.exit_code == 1
    assert "Models" not in result.output


def test_an_unknown_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    result = asked(monkeypatch, examination(), "--frob")
    assert result.exit_code == 2
    assert "Usage: gguf-serve doctor" in result.output
    assert "No such option" in result.output
