"""What is kept of responses and conversations in a folder, so that a restart forgets none.

Each is a file of JSON, which only the server's user can read. Files are written beside their place
and renamed; one that is no whole JSON all the same (after a loss of power) is deleted. They are
written by one thread, in the order in which they have been kept.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

log = logging.getLogger(__name__)
NAME = re.compile(r"(resp|conv)_[0-9A-Za-z]{32}")  # ids that are ours: others name no file
PART = ".part"
STALE = 60.0  # seconds: until then another server may be writing a part


class Saved(Struct):
    """The fields of a Kept that outlive the process."""

    id: str
    owner: str
    created_at: int
    items: list[dict[str, Any]]
    response: dict[str, Any] | None
    metadata: dict[str, Any]


class ResponseFiles:
    """Called by the event loop, and by threads that put answers together."""

    def __init__(self, folder: Path) -> None:
        """The folder is made when something is written to it."""
        self.folder = folder
        self._writer = ThreadPoolExecutor(1, "responses")
        self._is_broken = False  # it has been told of

    def load(self) -> Iterator[bytes]:
        """The content of each file, that which was used longest ago first."""
        with suppress(FileNotFoundError):
            for left in self.folder.glob("*" + PART):
                if time.time() - left.stat().st_mtime > STALE:
                    left.unlink(missing_ok=True)
        paths = [path for path in self.folder.glob("*_*") if NAME.fullmatch(path.name)]
        times = dict[Path, int]()
        for path in paths:
            with suppress(FileNotFoundError):
                times[path] = path.stat().st_mtime_ns
        for path in sorted(times, key=times.__getitem__):
            found = self._read(path.name)
            if found is not None:
                yield found

    def read(self, id: str) -> bytes | None:
        """The content of one, if there is a file of that name that is whole; after what has been
        written and removed before."""
        return self._writer.submit(self._read, id).result() if NAME.fullmatch(id) else None

    def write(self, id: str, content: bytes) -> None:
        self._writer.submit(self._write, self.folder / id, content)

    def touch(self, id: str) -> None:
        """It has been asked for: others go before it."""
        self._writer.submit(self._touch, self.folder / id)

    def remove(self, id: str) -> None:
        self._writer.submit((self.folder / id).unlink, missing_ok=True)

    def wait(self) -> None:
        """Until all is written that has been kept so far."""
        self._writer.submit(lambda: None).result()

    def _read(self, id: str) -> bytes | None:
        path = self.folder / id
        try:
            found = path.read_bytes()
            msgspec.json.decode(found, type=Saved)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn("read", error)
            return None
        except msgspec.MsgspecError as error:
            log.warning("%s is deleted: %s", path, error)
            path.unlink(missing_ok=True)
            return None
        return found

    def _touch(self, path: Path) -> None:
        with suppress(OSError):
            os.utime(path)

    def _write(self, path: Path, content: bytes) -> None:
        part = path.with_name(path.name + PART)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
            part.replace(path)
        except OSError as error:
            self._warn("written to", error)

    def _warn(self, what: str, error: OSError) -> None:
        if not self._is_broken:
            self._is_broken = True
            log.warning("%s cannot be %s: %s", self.folder, what, error)
