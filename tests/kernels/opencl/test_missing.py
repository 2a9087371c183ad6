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
