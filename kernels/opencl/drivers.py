"""The drivers that pip installs, found and loaded without importing NumPy or pyopencl."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from pathlib import Path

LOADER_VARIABLES = ("OPENCL_VENDOR_PATH", "OCL_ICD_VENDORS", "OCL_ICD_FILENAMES")
PACKAGE, LIBRARY = "intel-opencl-rt", "libintelocl.so"
BUNDLED_PLATFORM = "Intel(R) OpenCL"
POCL = "libpocl"  # how its library's name begins
_left_out: set[str] = set()  # beginnings of libraries' names
_loading: list[threading.Thread] = []


def bundled_drivers() -> list[Path]:
    """Driver libraries that pip put into this environment, or wherever it was told to."""
    roots = dict.fromkeys((sys.prefix, sys.base_prefix, os.path.expanduser("~/.local")))
    found = [Path(root) / "lib" / LIBRARY for root in roots]
    return [path for path in found if path.exists()][:1] or recorded_drivers()


@functools.cache
def recorded_drivers() -> list[Path]:
    """Where the package's own list of files says that the library is: with Debian's system pip,
    ``--prefix`` or ``--target`` that is no folder of this interpreter's. Not asked first, since
    to import what reads it takes as long as to load the library."""
    return [path for path in _recorded() if path.exists()][:1]


def is_lost() -> bool:
    """Whether the package is installed without its library."""
    recorded = _recorded()
    return bool(recorded) and not any(path.exists() for path in recorded)


def _recorded() -> list[Path]:
    from importlib.metadata import PackageNotFoundError, files

    try:
        listed = files(PACKAGE) or ()
    except PackageNotFoundError:
        return []
    return [Path(str(file.locate())).resolve() for file in listed if file.name == LIBRARY]


def are_named() -> bool:
    """Whether the user has said which drivers there are."""
    return any(name in os.environ for name in LOADER_VARIABLES)


def only_driver(platform: str, kind: str) -> dict[str, str]:
    """Environment variables with which a process loads the driver of a device's platform alone,
    and so has the memory of no other; empty where that driver is not one of pip's, or the user
    has said which."""
    drivers = bundled_drivers()
    if are_named() or not drivers or platform != BUNDLED_PLATFORM or kind != "cpu":
        return {}
    return {"OCL_ICD_VENDORS": str(drivers[0])}


def leave_out_unused() -> None:
    """Have drivers that nobody would choose not loaded in this process: no device has been named,
    so PoCL's (60 MiB of memory, 0.06 s) would stay unused beside pip's. For who must list them
    all there is no such call."""
    _left_out.add(POCL)


def is_left_out(icd: Path) -> bool:
    """Whether the driver that an ``.icd`` file names is not to be loaded beside pip's. PoCL's has
    other devices than the processor where the user asks for them (POCL_DEVICES)."""
    if "POCL_DEVICES" in os.environ:
        return False
    try:
        library = icd.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return False
    return Path(library).name.startswith(tuple(_left_out))


def limit_threads(n_threads: int) -> None:
    """Have CPU drivers, once they are loaded, use so many threads; below 1: as they like."""
    if n_threads > 0:
        os.environ.setdefault("CL_CONFIG_CPU_TBB_NUM_WORKERS", str(n_threads))
        os.environ.setdefault("POCL_MAX_PTHREAD_COUNT", str(n_threads))


def load_ahead(n_threads: int) -> None:
    """Load pip's driver aside, once all modules have been imported: one library is loaded at a
    time, and who imports another meanwhile waits, with the interpreter held. So would the OpenCL
    loader that does the same, 0.05 to 0.1 s; it then finds it loaded (``wait_for_loading``)."""
    limit_threads(n_threads)
    for driver in [] if are_named() else bundled_drivers():
        thread = threading.Thread(target=_load, args=[driver], name="driver", daemon=True)
        thread.start()
        _loading.append(thread)


def wait_for_loading() -> None:
    """Until what is loaded ahead is there."""
    while _loading:
        _loading.pop().join()


def _load(driver: Path) -> None:
    with contextlib.suppress(OSError, AttributeError):  # the OpenCL loader will say why
        dlopen = ctypes.CDLL(None).dlopen
        dlopen.restype = ctypes.c_void_p
        dlopen(os.fsencode(driver), os.RTLD_LAZY)
