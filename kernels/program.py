"""OpenCL programs: built once per source file and set of defines, then kept.

pyopencl keeps the binaries on disk, keyed by source, ``#include`` dependencies, options and
device, so that a second start builds nothing.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyopencl as cl

from kernels.device import Device, DeviceError

SOURCES = Path(__file__).resolve().parent


class BuildError(DeviceError):
    """A kernel does not compile on this device; the message carries the compiler's log."""


class _Quiet:
    """No warnings while any thread builds: compilers' remarks are not for users.

    ``catch_warnings`` alone is not made for threads: two that overlap leave the filters of the
    one that began later.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._n_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._filters.__exit__(None, None, None)


_quiet = _Quiet()


class Programs:
    """The built programs of one device. Thread-safe: loading builds several at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._built: dict[tuple[str, ...], cl.Program] = {}
        self._locks: dict[tuple[str, ...], threading.Lock] = {}
        self._lock = threading.Lock()

    def kernel(self, source: str, name: str, defines: Sequence[str] = ()) -> Any:
        """A new kernel object ``name`` of ``source`` (a .cl file), its arguments unset."""
        return cl.Kernel(self.build(source, defines), name)

    def build(self, source: str, defines: Sequence[str] = ()) -> cl.Program:
        key = (source, *sorted({*defines, *self._device.defines}))
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._built:
                self._built[key] = self._compile(source, key[1:])
            return self._built[key]

    def _compile(self, source: str, defines: Sequence[str]) -> cl.Program:
        text = (SOURCES / source).read_text(encoding="utf-8")
        options = [f"-I{SOURCES}", *(f"-D{define}" for define in defines)]
        with _quiet:
            try:
                program = cl.Program(self._device.context, text)
                built: cl.Program = program.build(options=options)
                return built
            except cl.RuntimeError as error:
                raise BuildError(f"{source} with {' '.join(defines)}: {error}") from error
