"""Compiled programs on disk, so that a second start compiles nothing.

An entry's name is a hash of all that its code depends on: the source with its includes, the
defines, the driver, and the processor itself. Drivers call many a processor by the same name
("Intel(R) Xeon(R) Processor" are all of a cloud's), and code for one ends a process on another.
Processes that start at once share the work: who compiles an entry holds its lock.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gguf_serve.kernels.opencl.compiling.cache_folder import cache_folder
from gguf_serve.kernels.opencl.platforms import DeviceInfo
from gguf_serve.kernels.opencl.sources import with_included

try:
    import fcntl
except ImportError:  # Windows: two that start at once both compile
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
FORMAT = b"gguf-serve program 1\n"
MOST_BYTES = 256 << 20  # of all entries; those used least recently go
CHECK_BYTES = 8 << 20  # written before the folder's size is looked at again
# What a processor's code depends on, in /proc/cpuinfo of x86 and of Arm.
CPU_FIELDS = (
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags", "CPU implementer",
    "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features",
)  # fmt: skip
# Variables that steer compilers of CPU and GPU drivers, but for those that only count threads or
# name folders.
STEERING = re.compile(r"(CL_CONFIG|POCL|IGC|SYCL|VOLCANO|CUDA|AMD|GPU|PYOPENCL_BUILD)_")
NOT_STEERING = re.compile(r".*(THREAD|NUM_WORKERS|CACHE|VISIBLE|DEBUG|TRACE|LOG|PATH|DIR)")


@functools.cache
def source_hash(source: str) -> str:
    """Of a .cl file with the text of all that it includes."""
    digest = hashlib.sha256()
    for name, text in with_included(source).items():
        digest.update(f"{name} {len(text)}\n{text}".encode())
    return digest.hexdigest()


def cpu_identity(path: Path = Path("/proc/cpuinfo")) -> Mapping[str, str]:
    """The processor by maker, model and features, not only by its name."""
    import platform

    found = {"machine": platform.machine()}
    try:
        text = path.read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return found | {"processor": platform.processor()}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in CPU_FIELDS:
            found[name.strip()] = " ".join(sorted(value.split()))
    return found


def steering_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that change what a driver's compiler makes."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if STEERING.match(name) and not NOT_STEERING.match(name)
    }


def program_key(
    source: str, defines: Sequence[str], info: DeviceInfo, device_hash: str = ""
) -> str:
    """The name of an entry; ``device_hash``: see there."""
    parts = [source, source_hash(source), *defines, device_hash or device_hash_of(info)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def device_hash_of(info: DeviceInfo) -> str:
    """What code for a device depends on beside its source."""
    parts = {
        "platform": info.platform, "device": info.name, "driver": info.driver, "kind": info.kind,
        "cpu": cpu_identity() if info.kind == "cpu" else None,
        "variables": steering_variables(os.environ),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def default_folder() -> Path | None:
    """Where entries are kept; None if the user has no cache folder."""
    folder = cache_folder()
    return None if folder is None else folder / "programs"


class ProgramCache:
    """Entries in a folder. Thread-safe; what cannot be read is missing, what cannot be written
    costs one warning."""

    def __init__(self, folder: Path | None, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self._most_bytes = folder, most_bytes
        self._unchecked = most_bytes  # the first entry that is written has the folder looked at
        self.unwritable: str | None = None  # the folder, once an entry could not be kept
        self._lock = threading.Lock()

    def load(self, key: str) -> bytes | None:
        """An entry, or None if it is missing or damaged."""
        if self.folder is None:
            return None
        path = self.folder / f"{key}.bin"
        try:
            data = path.read_bytes()
        except OSError:
            return None
        head = len(FORMAT) + hashlib.sha256().digest_size
        binary = data[head:]
        if data[:head] != FORMAT + hashlib.sha256(binary).digest() or not binary:
            self.discard(key)
            return None
        with contextlib.suppress(OSError):  # the time of the last use
            os.utime(path)
        return binary

    def store(self, key: str, binary: bytes) -> None:
        """Write an entry: all of it or nothing."""
        if self.folder is None:
            return self._warn("the user has no home folder; XDG_CACHE_HOME names another place")
        data = FORMAT + hashlib.sha256(binary).digest() + binary
        name = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                name = file.name
                file.write(data)
            os.replace(name, self.folder / f"{key}.bin")
        except OSError as error:
            if name is not None:
                with contextlib.suppress(OSError):
                    os.unlink(name)
            return self._warn(f"{self.folder}: {error.strerror or error}")
        with self._lock:
            self._unchecked += len(data)
            full = self._unchecked >= min(CHECK_BYTES, self._most_bytes)
            if full:
                self._unchecked = 0
        if full:
            self._evict()
        return None

    def discard(self, key: str) -> None:
        """Forget an entry, for a driver did not take it."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.folder / f"{key}.bin")

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[bool]:
        """Hold an entry's lock if no other thread or process does; yields whether it is held.

        Where there can be no locks everybody holds them. That of a process that dies is free.
        """
        if fcntl is None or self.folder is None:
            yield True
            return
        path = self.folder / f"{key}.lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            yield True
            return
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = _is(path, file)  # who held it may have removed it
            except BlockingIOError:
                held = False
            except OSError:  # a file system without locks
                held = True
            try:
                yield held
            finally:
                if held:
                    with contextlib.suppress(OSError):
                        os.unlink(path)
        finally:
            os.close(file)

    def _evict(self) -> None:
        """Remove the entries used least recently until the rest is small enough."""
        if self.folder is None:
            return
        entries = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as found:
            for entry in found:
                with contextlib.suppress(OSError):
                    state = entry.stat()
                    entries.append((state.st_mtime, state.st_size, entry.path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._most_bytes:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= size

    def _warn(self, reason: str) -> None:
        with self._lock:
            warned = self.unwritable is not None
            self.unwritable = str(self.folder or "a cache folder")
        if not warned:
            log.warning("compiled programs cannot be kept, every start compiles: %s", reason)


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except OSError:
        return False
