"""Which drivers a machine lacks, and the commands that install them.

Only ``missing`` loads drivers, to hear why the loader of OpenCL passed over one without a word.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from msgspec import Struct

from gguf_serve.kernels.opencl.drivers import LIBRARY, PACKAGE, is_lost

PCI = Path("/sys/bus/pci/devices")
VENDORS_FOLDER = Path("/etc/OpenCL/vendors")  # of files that each name a driver's library
DEVICE_FILES = ("dri/renderD*", "kfd", "dxg")  # in /dev, that the drivers of GPUs open
DISPLAY = "0x03"  # how the PCI class of GPUs begins; NVIDIA's without an output are 0x0302
POCL = "apt-get install pocl-opencl-icd"


class Vendor(Struct, frozen=True):
    """A maker of GPUs; ``platforms``: what its drivers are called, in lower case."""

    name: str
    platforms: tuple[str, ...]
    advice: str


VENDORS = {
    "0x10de": Vendor(
        "NVIDIA", ("nvidia",),
        "NVIDIA's driver has OpenCL: apt-get install nvidia-opencl-icd, or in a container "
        "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ),
    "0x1002": Vendor(
        "AMD", ("amd", "rusticl"),
        "apt-get install rocm-opencl-runtime (from AMD's repository), or mesa-opencl-icd with "
        "RUSTICL_ENABLE=radeonsi in the environment",
    ),
    "0x8086": Vendor(
        "Intel", ("intel(r) opencl graphics", "rusticl"), "apt-get install intel-opencl-icd"
    ),
}  # fmt: skip


def cpu_advice() -> str:
    """The command that installs a driver for this processor."""
    if is_lost():
        return (
            f"{PACKAGE} is installed, but without its {LIBRARY}, which pip leaves out with "
            "--target: install into a virtual environment, or with --prefix"
        )
    if sys.platform == "linux" and platform.machine() == "x86_64":
        has_pip = importlib.util.find_spec("pip") is not None  # environments of uv's have none
        pip = (
            f"{sys.executable} -m pip install" if has_pip else f"uv pip install -p {sys.executable}"
        )
        return f"{pip} {PACKAGE} intel-cmplr-lib-rt, or {POCL}"
    if sys.platform == "linux":
        return POCL
    return "install PoCL (https://portablecl.org)"


def no_driver() -> str:
    """What is said where there is no device at all."""
    gpus = gpus_without_driver(())
    for_gpu = "".join(f" For {vendor.name}'s GPU: {vendor.advice}." for vendor in gpus)
    return f"no OpenCL driver found. For the processor: {cpu_advice()}.{for_gpu}"


def missing(
    platforms: Collection[str],
    *,
    has_cpu: bool,
    pci: Path = PCI,
    vendors: Path = VENDORS_FOLDER,
    dev: Path = Path("/dev"),
) -> list[str]:
    """Sentences about what keeps devices of this machine from being used, with what to do.

    ``platforms``: of the devices that there are, by name; ``has_cpu``: whether one of them is the
    processor.
    """
    found = [] if has_cpu else [f"the processor has no OpenCL driver: {cpu_advice()}"]
    found += [
        f"{vendor.name}'s GPU has no OpenCL driver: {vendor.advice}"
        for vendor in gpus_without_driver(platforms, pci)
    ]
    found += [
        f"{path} may not be opened by this user: usermod -aG {path.group()} USER, and log in again"
        for path in device_files(dev)
        if not os.access(path, os.R_OK | os.W_OK)
    ]
    return found + [
        f"{icd} names a driver that cannot be loaded: {why}" for icd, why in broken(vendors)
    ]


def device_files(dev: Path) -> list[Path]:
    return [path for pattern in DEVICE_FILES for path in sorted(dev.glob(pattern))]


def broken(vendors: Path) -> Iterator[tuple[Path, str]]:
    """The ``.icd`` files whose library cannot be loaded, with the system's reason."""
    for icd in sorted(vendors.glob("*.icd")):
        try:
            ctypes.CDLL(read(icd))
        except OSError as error:
            yield icd, str(error)


def gpus_without_driver(platforms: Collection[str], folder: Path = PCI) -> list[Vendor]:
    """Makers of GPUs in this machine that none of the platforms (by their names) is of."""
    found = {vendor_of(path) for path in sorted(folder.glob("*")) if is_gpu(path)}
    names = [name.lower() for name in platforms]
    return [
        vendor
        for number, vendor in VENDORS.items()
        if number in found and not any(p in name for p in vendor.platforms for name in names)
    ]


def is_gpu(path: Path) -> bool:
    return read(path / "class").startswith(DISPLAY)


def vendor_of(path: Path) -> str:
    return read(path / "vendor")


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
