"""What a batch has written so far: its output and error files are also the list of what is done.

A line is written at once and whole when its request has ended. After a kill the end of a file may
be half a line: it is dropped, and that request runs again; every other has its line, once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gguf_serve.server.batches.objects import Batch
from gguf_serve.server.batches.store import Store


class Answered(Struct):
    """Of a body only what is counted is decoded."""

    usage: dict[str, Any] | None = None


class Response(Struct):
    body: Answered | None = None


class Written(Struct):
    custom_id: str
    response: Response | None = None


class Journal:
    """Used by one thread at a time."""

    def __init__(self, store: Store, batch: Batch) -> None:
        """Go on with the files of a batch, if there are some. Its counts become those of their
        lines."""
        self._store, self._batch = store, batch
        self.done: set[str] = set()  # custom_ids
        counts = batch.request_counts
        counts.completed = counts.failed = 0
        batch.usage = type(batch.usage)()
        self._files = {}
        for id in (batch.output, batch.failures):
            self._read(store.place(id), is_failed=id == batch.failures)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._files[id] = os.open(store.place(id), flags, 0o600)

    def write(self, custom_id: str, line: bytes, *, is_failed: bool) -> None:
        """Raises StoreFullError or OSError where it cannot be written: then nothing of it is."""
        self._store.grow(len(line))
        file = self._files[self._batch.failures if is_failed else self._batch.output]
        size = os.fstat(file).st_size
        if os.write(file, line) < len(line):
            os.ftruncate(file, size)
            self._store.shrink(len(line))
            raise OSError(f"no room for {len(line)} bytes")
        self._count(msgspec.json.decode(line, type=Written), is_failed)

    def close(self) -> None:
        """Have it all on the disk."""
        for file in self._files.values():
            os.fsync(file)
            os.close(file)
        self._files.clear()

    def _read(self, path: Path, is_failed: bool) -> None:
        if not path.exists():
            return
        with path.open("r+b") as file:
            end = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                self._count(msgspec.json.decode(line, type=Written), is_failed)
            torn = path.stat().st_size - end
            if torn:
                file.truncate(end)
                self._store.shrink(torn)

    def _count(self, written: Written, is_failed: bool) -> None:
        self.done.add(written.custom_id)
        counts = self._batch.request_counts
        if is_failed:
            counts.failed += 1
        else:
            counts.completed += 1
        body = written.response and written.response.body
        if body and body.usage and not is_failed:
            self._batch.usage.add(body.usage)
