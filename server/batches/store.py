"""A folder of clients' files and batches, below a limit, which one server at a time uses.

A file is its content under its id, and ``ID.json`` with its object; a batch is ``ID.json``. Both
are written beside their place and renamed, so that what is there is whole. A content without an
object is what a killed server has left of an upload, unless a batch that still runs writes to it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from gguf_serve.server.batches.objects import Batch, StoredFile, new_id, now
from gguf_serve.server.errors import ApiError, invalid, shown
from gguf_serve.server.http.client import client

log = logging.getLogger(__name__)
Object = TypeVar("Object", StoredFile, Batch)
JSON, PART, LOCK = ".json", ".part", "lock"
MAX_FILES = 10_000
MAX_BATCHES = 10_000
MAX_UNFINISHED = 64  # batches; each has its lines in memory
FILE_SECONDS = 30 * 24 * 3600  # for which a file stays, unless its client says otherwise


class StoreError(Exception):
    """The folder cannot be used."""


class StoreFullError(Exception):
    """There is no room for what a batch has to write."""


class Store:
    """Methods that read or write contents may be called from any thread, others by the event
    loop."""

    def __init__(self, path: Path, limit: int) -> None:
        """``limit``: bytes of all contents. The folder is made if it is not there, for this user
        alone. Raises StoreError."""
        self.path, self.limit = path, limit
        self.files: dict[str, StoredFile] = {}
        self.batches: dict[str, Batch] = {}
        self.n_bytes = 0
        self._counting = threading.Lock()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock()
            self._load()
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror or error}") from None

    def place(self, id: str) -> Path:
        """Where the content of a file is. ``id`` is one of ours, never what a client has sent."""
        return self.path / id

    # Files

    def add_file(self, data: bytes, filename: str, seconds: int | None = None) -> StoredFile:
        """Keep what a client has sent, for so many seconds. ApiError if there is no room."""
        self.drop_old()
        if len(self.files) >= MAX_FILES:
            raise ApiError("payload_too_large_error", f"there are {MAX_FILES} files: delete some")
        file = StoredFile(new_id("file-"), len(data), filename, "batch", client.get())
        file.expires_at = file.created_at + (seconds or FILE_SECONDS)
        try:
            self.grow(len(data))
        except StoreFullError as error:
            raise ApiError("payload_too_large_error", f"{error}: delete files") from None
        self._write(self.place(file.id), data)
        self._write(self.path / (file.id + JSON), msgspec.json.encode(file))
        self.files[file.id] = file
        return file

    def add_output(self, id: str, batch: Batch, filename: str) -> None:
        """Make a file of a client of what a batch has written, which stands under this id."""
        size = self.place(id).stat().st_size
        file = StoredFile(id, size, filename, "batch_output", batch.owner)
        file.expires_at = file.created_at + (batch.output_seconds or FILE_SECONDS)
        self._write(self.path / (id + JSON), msgspec.json.encode(file))
        self.files[id] = file

    def find_file(self, id: str, field: str = "id") -> StoredFile:
        """ApiError if it is not there, or another client's. ``field``: "id" in a path."""
        return self._found(self.files, id, "file", field)

    def delete_file(self, file: StoredFile) -> None:
        """ApiError if a batch still reads it."""
        readers = (b.id for b in self.unfinished() if b.input_file_id == file.id)
        reader = next(readers, None)
        if reader is not None:
            raise invalid(f"file {file.id} is read by {reader}, which has not ended")
        self._forget(file)

    def grow(self, n_bytes: int) -> None:
        """Count bytes that are about to be written. StoreFullError if they are too many."""
        with self._counting:
            if self.n_bytes + n_bytes > self.limit:
                n, most = self.n_bytes + n_bytes, self.limit
                raise StoreFullError(f"{n} bytes of files, at most {most} (--batch-storage)")
            self.n_bytes += n_bytes

    def shrink(self, n_bytes: int) -> None:
        with self._counting:
            self.n_bytes -= n_bytes

    # Batches

    def add_batch(self, batch: Batch) -> None:
        n_unfinished = sum(1 for _ in self.unfinished())
        if n_unfinished >= MAX_UNFINISHED:
            message = f"{n_unfinished} batches have not ended, no more may be made"
            raise ApiError("rate_limit_error", message, headers={"retry-after": "60"})
        while len(self.batches) >= MAX_BATCHES:  # most have ended
            oldest = next(b for b in self.batches.values() if not b.is_unfinished)
            del self.batches[oldest.id]
            (self.path / (oldest.id + JSON)).unlink(missing_ok=True)
        self.save(batch)
        self.batches[batch.id] = batch

    def save(self, batch: Batch) -> None:
        self._write(self.path / (batch.id + JSON), msgspec.json.encode(batch))

    def find_batch(self, id: str) -> Batch:
        return self._found(self.batches, id, "batch", "id")

    def unfinished(self) -> Iterator[Batch]:
        """In the order in which they were made."""
        return (batch for batch in self.batches.values() if batch.is_unfinished)

    def drop_old(self) -> None:
        """Delete the files whose time is over, unless a batch still reads them."""
        read = {batch.input_file_id for batch in self.unfinished()}
        for file in list(self.files.values()):
            if file.expires_at is not None and file.expires_at <= now() and file.id not in read:
                self._forget(file)

    def _forget(self, file: StoredFile) -> None:
        del self.files[file.id]
        (self.path / (file.id + JSON)).unlink(missing_ok=True)  # the content alone is a leftover
        self.place(file.id).unlink(missing_ok=True)
        self.shrink(file.bytes)

    @staticmethod
    def _found(kept: dict[str, Object], id: str, what: str, field: str) -> Object:
        found = kept.get(id)
        if found is None or found.owner != client.get():
            message = f"there is no {what} {shown(id)} here (any more)"
            if field == "id":
                raise ApiError("not_found_error", message)
            raise invalid(f"Field '{field}': {message}")
        return found

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        part = path.with_name(path.name + PART)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    def _lock(self) -> None:
        import filelock  # only servers with such a folder need it

        self._held = filelock.FileLock(self.path / LOCK, mode=0o600)
        try:
            self._held.acquire(timeout=0)
        except filelock.Timeout:
            raise StoreError(f"{self.path} is used by another server") from None

    def _load(self) -> None:
        """What is in the folder; leftovers of a server that was killed are deleted."""
        objects = [path for path in self.path.iterdir() if path.suffix == JSON]
        read = (self._read(path) for path in objects)
        found = sorted(
            (kept for kept in read if kept is not None), key=lambda kept: (kept.created_at, kept.id)
        )
        self.batches = {kept.id: kept for kept in found if isinstance(kept, Batch)}
        self.files = {kept.id: kept for kept in found if isinstance(kept, StoredFile)}
        written = {id for b in self.unfinished() for id in (b.output, b.failures)}
        for path in self.path.iterdir():
            is_content = path.name in self.files or path.name in written
            if is_content:
                self.n_bytes += path.stat().st_size
            elif path.name != LOCK and path.suffix != JSON:
                path.unlink()
        self.drop_old()

    def _read(self, path: Path) -> StoredFile | Batch | None:
        kind: type[StoredFile | Batch] = Batch if path.name.startswith("batch_") else StoredFile
        try:
            found = msgspec.json.decode(path.read_bytes(), type=kind)
        except msgspec.MsgspecError as error:
            log.warning("%s is deleted: %s", path, error)
        else:
            if isinstance(found, Batch) or self.place(found.id).is_file():
                return found
        path.unlink()
        return None
