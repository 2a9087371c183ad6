"""The machine's OpenCL platforms and devices: finding the drivers, choosing a device.

Drivers that pip installed (Intel's CPU runtime, extra ``cpu``) come without a usable ``.icd``
file. The loader inside pyopencl's wheel honours ``OPENCL_VENDOR_PATH``, a folder of ``.icd``
files, and reads it once; so it is pointed to a folder with the system's files and ours while
the platforms are first asked for. A value that the user has set is left alone.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from gguf_serve.kernels.opencl.capabilities import Capabilities, read_capabilities
from gguf_serve.kernels.opencl.drivers import (
    are_named,
    bundled_drivers,
    is_left_out,
    limit_threads,
    wait_for_loading,
)
from gguf_serve.kernels.opencl.memory import available_memory
from gguf_serve.kernels.opencl.missing import cpu_advice, no_driver

if TYPE_CHECKING:
    import pyopencl as cl

log = logging.getLogger(__name__)
SHARED_MEMORY = "/dev/shm"  # writable even where the root is not
SYSTEM_VENDORS = Path("/etc/OpenCL/vendors")


class DeviceError(Exception):
    """The device cannot do what was asked of it; the message says what and, if known, why."""


class DeviceInfo(Struct, frozen=True):
    """What a person wants to know of a device."""

    index: int
    name: str
    platform: str
    driver: str
    kind: str  # "cpu", "gpu" or "accelerator"
    memory_bytes: int
    compute_units: int
    capabilities: Capabilities = Capabilities()


def find_device(platform: str, name: str) -> cl.Device:
    """The device of this name; DeviceError if it is not there."""
    infos = list_devices()
    found = [info for info in infos if (info.platform, info.name) == (platform, name)]
    if not found:
        known = [(info.platform, info.name) for info in infos]
        raise DeviceError(f"no device {name!r} of {platform!r}, only {known}")
    return platform_devices()[found[0].index]


def _vendor_folder(drivers: list[Path]) -> str | None:
    """None where nothing can be written to, not even shared memory."""
    for place in (None, SHARED_MEMORY):
        try:
            folder = tempfile.mkdtemp(prefix="gguf-serve-icd-", dir=place)
            break
        except OSError as error:
            reason = error
    else:
        log.warning("%s is not found without a folder for temporary files: %s", drivers[0], reason)
        return None
    if SYSTEM_VENDORS.is_dir():
        for icd in SYSTEM_VENDORS.glob("*.icd"):
            if not is_left_out(icd):
                shutil.copy(icd, folder)
    for driver in drivers:
        (Path(folder) / f"{driver.stem}.icd").write_text(f"{driver}\n", encoding="utf-8")
    return folder


@functools.cache
def platform_devices(n_threads: int = -1) -> tuple[cl.Device, ...]:
    """Every OpenCL device of the machine; the driver list is read by the first call only."""
    limit_threads(n_threads)
    drivers = bundled_drivers()
    folder = None
    if drivers and not are_named():
        folder = _vendor_folder(drivers)
    if folder:
        os.environ["OPENCL_VENDOR_PATH"] = folder
    try:
        import pyopencl as cl

        wait_for_loading()
        try:
            platforms = cl.get_platforms()
        except cl.LogicError:
            return ()
        return tuple(d for p in platforms for d in _devices_of(p))
    finally:
        if folder:
            del os.environ["OPENCL_VENDOR_PATH"]
            shutil.rmtree(folder, ignore_errors=True)


def _devices_of(platform: cl.Platform) -> list[cl.Device]:
    import pyopencl as cl

    try:
        return list(platform.get_devices())
    except cl.Error:  # a platform without a device says so by an error
        return []


def _kind(device: cl.Device) -> str:
    import pyopencl as cl

    kinds = {cl.device_type.CPU: "cpu", cl.device_type.GPU: "gpu"}
    return next((name for bit, name in kinds.items() if device.type & bit), "accelerator")


def list_devices(n_threads: int = -1) -> list[DeviceInfo]:
    """The machine's OpenCL devices, in the drivers' order."""
    return [_info(i, device) for i, device in enumerate(platform_devices(n_threads))]


def _info(index: int, device: Any) -> DeviceInfo:
    kind = _kind(device)
    return DeviceInfo(
        index=index,
        capabilities=read_capabilities(device, is_cpu=kind == "cpu"),
        name=" ".join(device.name.split()),
        platform=device.platform.name,
        driver=" ".join(f"{device.version} driver {device.driver_version}".split()),
        kind=kind,
        memory_bytes=int(device.global_mem_size),
        compute_units=int(device.max_compute_units),
    )


def _preference(info: DeviceInfo) -> tuple[int, int]:
    """Lower is better: a GPU, Intel's CPU runtime, any other."""
    if info.kind == "gpu":
        return (0, -info.memory_bytes)
    return (1 if "intel" in info.platform.lower() else 2, 0)


def choose(infos: list[DeviceInfo], wanted: str | None, use_gpu: bool = True) -> DeviceInfo:
    """The device called ``wanted`` (index, or part of its name or platform), or the best one.

    Raises DeviceError if there is none, or none of that name.
    """
    if not infos:
        raise DeviceError(no_driver())
    if wanted is None:
        usable = [i for i in infos if use_gpu or i.kind != "gpu"] or infos
        return min(usable, key=_preference)
    for info in infos:
        if wanted == str(info.index):
            return info
    for field_name in ("platform", "name"):  # PoCL puts the processor's brand into its names
        for info in infos:
            if wanted.lower() in getattr(info, field_name).lower():
                return info
    names = ", ".join(f"{i.index}: {i.name} ({i.platform})" for i in infos)
    raise DeviceError(f"no OpenCL device {wanted!r}; there are {names}")


def choose_all(
    infos: list[DeviceInfo], wanted: str | None, use_gpu: bool = True
) -> list[DeviceInfo]:
    """The devices that have layers: those of ``wanted`` with commas between (see ``choose``), or
    every GPU of the best one's driver, the best first, or else the one that is best.

    "none" is the processor. Raises DeviceError for a name that no device has, or one twice.
    """
    if wanted is None:
        best = choose(infos, None, use_gpu)
        if best.kind != "gpu":
            return [best]
        gpus = [i for i in infos if i.kind == "gpu" and i.platform == best.platform]
        return sorted(gpus, key=_preference)
    if wanted == "none":
        return [choose_cpu(infos)]
    chosen = [choose(infos, name.strip()) for name in wanted.split(",")]
    if len(set(chosen)) < len(chosen):
        raise DeviceError(f"{wanted!r} names a device twice")
    return chosen


def choose_cpu(infos: list[DeviceInfo]) -> DeviceInfo:
    """The device that is the processor; DeviceError if it has no driver."""
    cpus = [info for info in infos if info.kind == "cpu"]
    if not cpus:
        raise DeviceError(f"no OpenCL device for what is to be on the CPU: {cpu_advice()}")
    return min(cpus, key=_preference)


def free_memory(info: DeviceInfo) -> int:
    """Bytes that can be allocated on a device: the host's available ones on a CPU."""
    available = available_memory() if info.kind == "cpu" else None
    return info.memory_bytes if available is None else available
