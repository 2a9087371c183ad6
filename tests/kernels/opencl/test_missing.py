"""Which drivers are missing, and what installs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_serve.kernels.opencl import missing
from gguf_serve.kernels.opencl.missing import cpu_advice, gpus_without_driver, no_driver


@pytest.fixture
def pci(tmp_path: Path) -> Path:
    """A machine with an AMD GPU, an NVIDIA one without an output, and a network card of Intel's."""
    cards = [("0x030000", "0x1002"), ("0x030200", "0x10de"), ("0x020000", "0x8086")]
    for number, (kind, vendor) in enumerate(cards):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "class").write_text(f"{kind}\n")
        (folder / "vendor").write_text(f"{vendor}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("platforms", "names"),
    [
        ([], ["NVIDIA", "AMD"]),
        (["NVIDIA CUDA"], ["AMD"]),
        (["rusticl", "Intel(R) OpenCL"], ["NVIDIA"]),
        (["AMD Accelerated Parallel Processing", "NVIDIA CUDA"], []),
    ],
)
def test_gpus(pci: Path, platforms: list[str], names: list[str]) -> None:
    assert [vendor.name for vendor in gpus_without_driver(platforms, pci)] == names


def test_a_machine_without_pci(tmp_path: Path) -> None:
    assert gpus_without_driver([], tmp_path / "none") == []


@pytest.mark.parametrize(
    ("machine", "lost", "words"),
    [
        ("x86_64", False, "-m pip install intel-opencl-rt"),
        ("aarch64", False, "apt-get install pocl-opencl-icd"),
        ("x86_64", True, "leaves out with --target"),
    ],
)
def test_advice(monkeypatch: pytest.MonkeyPatch, machine: str, lost: bool, words: str) -> None:
    monkeypatch.setattr(missing.platform, "machine", lambda: machine)
    monkeypatch.setattr(missing, "is_lost", lambda: lost)
    assert words in cpu_advice()
    assert cpu_advice() in no_driver()


def test_advice_where_there_is_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment of ``uv tool install``."""
    monkeypatch.setattr(missing.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(missing, "is_lost", lambda: False)
    monkeypatch.setattr(missing.importlib.util, "find_spec", lambda name: None)
    assert cpu_advice().startswith(f"uv pip install -p {missing.sys.executable} intel-opencl-rt ")


def test_what_keeps_devices_from_being_used(
    pci: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendors, dev = tmp_path / "vendors", tmp_path / "dev"
    (dev / "dri").mkdir(parents=True)
    node = dev / "dri" / "renderD128"
    node.touch()
    vendors.mkdir()
    (vendors / "none.icd").write_text("libno-such-driver.so.1\n")
    monkeypatch.setattr(missing.os, "access", lambda path, mode: path != node)
    found = missing.missing(
        ["NVIDIA CUDA"], has_cpu=False, pci=pci, vendors=vendors, dev=dev
    )  # fmt: skip
    beginnings = [
        "the processor has no OpenCL driver: ", "AMD's GPU has no OpenCL driver: ",
        f"{node} may not be opened by this user: usermod -aG ", f"{vendors / 'none.icd'} names ",
    ]  # fmt: skip
    assert [text[: len(begin)] for text, begin in zip(found, beginnings, strict=True)] == beginnings
    assert "libno-such-driver.so.1" in found[-1]


def test_a_machine_that_lacks_nothing(tmp_path: Path) -> None:
    nothing = tmp_path / "none"
    assert missing.missing([], has_cpu=True, pci=nothing, vendors=nothing, dev=nothing) == []
