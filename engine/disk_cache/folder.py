"""A folder of page files below a limit, shared by all servers that are given it.

Nothing is known of a file but its name, size and time: whoever looks for a page opens its file, so
that each server finds what another has written. The time of a file is that of its last use, and in
a chain that of a page is later than those of the pages after it: what was used longest ago is the
end of a chain, and goes first. The lock's file has the total, so that only eviction reads the
folder. Files are written under the lock, beside their place, and renamed.
"""

from __future__ import annotations

import logging
import os
import secrets
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gguf_serve.engine.disk_cache.names import PageName
from gguf_serve.engine.disk_cache.page_file import (
    DamagedError,
    Kind,
    file_bytes,
    file_name,
    is_page_file,
    parts_of,
    read_page,
)

try:
    import fcntl
except ImportError:  # a folder is one server's there
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
LOCK, PART = "lock", ".part"
TOTALS = struct.Struct("<2Q")  # in the lock's file: bytes and files
STEP = 1_000  # nanoseconds between the times of two pages; file systems keep 100 or fewer
EVICTED_SHARE = 1 / 16  # of the limit, which eviction makes room for at once
PAUSE = 60.0  # seconds without writing, after it has failed


class Folder:
    """Its methods may be called from any thread; writing is one thread's."""

    def __init__(self, path: Path, limit: int) -> None:
        """``limit``: bytes. The folder is made if it is not there, for this user alone; a folder
        that cannot be used is a warning, and then holds nothing."""
        self.path, self.limit = path, limit
        self.n_bytes = self.n_files = 0  # in the folder, as of the last look at it
        self.n_written = self.n_evicted = self.n_corrupt = 0  # files
        self._newest = 0  # nanoseconds
        self._rests_until = 0.0
        self._warned = set[int | None]()
        self._stamping, self._writing = threading.Lock(), threading.Lock()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            self._note(error, "written to")

    # Reading

    def has(self, name: PageName, kind: Kind) -> bool:
        return (self.path / file_name(name, kind)).is_file()

    def read(self, name: PageName, kind: Kind, n_data: int) -> memoryview | None:
        """The ``n_data`` bytes of a page; None if there are none. A file that is damaged or not
        what its name says is deleted and counted."""
        path = self.path / file_name(name, kind)
        try:
            return read_page(path, name, kind, n_data)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            log.warning("%s is deleted: %s", path, error)
            self.n_corrupt += 1
            self.remove(name, kind)
        except OSError as error:
            self._note(error, "read")
        return None

    def touch(self, name: PageName, kind: Kind, stamp: int) -> bool:
        """Take note that a page has been used, at one of ``stamps``; False: there is none."""
        try:
            os.utime(self.path / file_name(name, kind), ns=(stamp, stamp))
        except FileNotFoundError:
            return False
        except OSError:  # it may still be read
            return self.has(name, kind)
        return True

    def remove(self, name: PageName, kind: Kind) -> None:
        """Delete a page. The total is right again when the folder is next looked through: to wait
        for the lock might take as long as another server likes."""
        with suppress(OSError):
            (self.path / file_name(name, kind)).unlink()

    def stamps(self, n: int) -> list[int]:
        """Times of use, in nanoseconds, for the pages of a chain: the last page's is the first."""
        with self._stamping:
            first = max(time.time_ns(), self._newest + STEP)
            self._newest = first + (n - 1) * STEP
        return [self._newest - i * STEP for i in range(n)]

    # Writing

    @property
    def takes(self) -> bool:
        """Whether there is hope that something can be written."""
        return time.monotonic() >= self._rests_until

    def write(self, name: PageName, kind: Kind, data: memoryview, stamp: int) -> bool:
        """Keep a page, used at ``stamp``; False: it cannot be, or only in the place of pages that
        were used later."""
        size = file_bytes(len(name.ids), data.nbytes)
        if size > self.limit or not self.takes:
            return False
        try:
            with self._lock() as lock:
                if self.touch(name, kind, stamp):  # another server was faster
                    return True
                self._read_totals(lock)
                if self.n_bytes + size > self.limit and not self._make_room(size, stamp):
                    self._write_totals(lock)
                    return False
                self._place(self.path / file_name(name, kind), parts_of(name, kind, data), stamp)
                self.n_bytes += size
                self.n_files += 1
                self._write_totals(lock)
        except OSError as error:
            self._note(error, "written to")
            return False
        self.n_written += 1
        return True

    def look(self) -> None:
        """Count what is there, and delete what writers that were killed have left behind."""
        try:
            with self._lock() as lock:
                for left in self.path.glob(f"*{PART}"):
                    left.unlink()  # whoever writes has the lock
                self._scan()
                self._make_room(0, self._newest + STEP)
                self._write_totals(lock)
        except OSError as error:
            self._note(error, "written to")

    def _place(self, path: Path, parts: Iterable[bytes | memoryview], stamp: int) -> None:
        part = path.with_name(f"{secrets.token_hex(8)}{PART}")
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", 0) as file:
                for piece in parts:
                    rest = memoryview(piece)
                    while rest:
                        rest = rest[file.write(rest) :]
            os.utime(part, ns=(stamp, stamp))
            part.replace(path)
        except OSError:
            with suppress(OSError):
                part.unlink()
            raise

    def _make_room(self, size: int, stamp: int) -> bool:
        """Delete what was used longest ago, and before ``stamp``, until ``size`` bytes and some
        more have room. Under the lock."""
        found = self._scan()
        enough = self.limit - size - int(self.limit * EVICTED_SHARE) * (size > 0)
        for used, n_bytes, path in sorted(found):
            if self.n_bytes <= max(enough, 0) or used >= stamp:
                break
            os.unlink(path)
            self.n_bytes -= n_bytes
            self.n_files -= 1
            self.n_evicted += 1
        return self.n_bytes + size <= self.limit

    def _scan(self) -> list[tuple[int, int, str]]:
        """(time of use, bytes, path) of each page's file; others are not ours to touch."""
        found = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if is_page_file(entry.name):
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime_ns, status.st_size, entry.path))
        self.n_bytes, self.n_files = sum(size for _, size, _ in found), len(found)
        with self._stamping:
            self._newest = max(self._newest, max((used for used, _, _ in found), default=0))
        return found

    @contextmanager
    def _lock(self) -> Iterator[int]:
        """The lock of the folder, which the system lets go with the process: its descriptor."""
        with self._writing:
            lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if fcntl is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                yield lock
            finally:
                os.close(lock)

    def _read_totals(self, lock: int) -> None:
        os.lseek(lock, 0, os.SEEK_SET)
        raw = os.read(lock, TOTALS.size)
        if len(raw) == TOTALS.size:
            self.n_bytes, self.n_files = TOTALS.unpack(raw)
        else:
            self._scan()

    def _write_totals(self, lock: int) -> None:
        os.lseek(lock, 0, os.SEEK_SET)
        os.write(lock, TOTALS.pack(self.n_bytes, self.n_files))

    def _note(self, error: OSError, what: str) -> None:
        """Say once what is wrong, and write nothing for a while."""
        self._rests_until = time.monotonic() + PAUSE
        if error.errno not in self._warned:
            self._warned.add(error.errno)
            log.warning("--cache-disk %s cannot be %s: %s", self.path, what, error.strerror)
