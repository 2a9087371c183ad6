"""A file by its URL, kept in the user's cache; a download that broke off goes on where it ended."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
from platformdirs import user_cache_path

from gguf_serve.server.configure import SettingsError
from gguf_serve.server.sources.progress import Progress

PART = ".incomplete"  # what has come so far
ETAG = ".etag"  # which version a file, or a part of one, is of, as a server calls it
TIMEOUT = httpx.Timeout(30.0)
TRIES = 3
ROOM = 1 << 28  # bytes that a download leaves free
MAX_NAME = 100  # characters of a file's name that are kept


class StatusError(SettingsError):
    """A server's answer that is no file."""

    def __init__(self, url: str, status: int) -> None:
        super().__init__(f"cannot download {url}: the answer was {status}")
        self.status = status


def fetched(
    url: str, *, offline: bool = False, headers: Mapping[str, str] | None = None,
    sha256: str = "", folder: Path | None = None,
) -> Path:  # fmt: skip
    """Where the file lies on this disk; SettingsError says why it cannot be had.

    A file that is there is asked about once a start, and used as it is if nobody answers.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise SettingsError(f"{url!r} is no URL to download from: expected https://... or http://")
    folder = folder or user_cache_path("gguf-serve") / "models"
    path = folder / name_of(url)
    if not offline:
        download(url, path, headers=headers, sha256=sha256)
    elif not path.is_file():
        raise SettingsError(f"{url} is not in {folder}, and --offline allows no download")
    return path


def download(
    url: str, path: Path, *, headers: Mapping[str, str] | None = None, sha256: str = "",
    name: str = "",
) -> None:  # fmt: skip
    """Have the newest version at ``path``, or the one of this SHA-256. What has come of a download
    that breaks off is kept beside it, and the next one goes on from there."""
    if sha256 and path.is_file():  # which it is once all of it has come with that checksum
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with httpx.Client(follow_redirects=True, timeout=TIMEOUT) as client:
            for left in reversed(range(TRIES)):
                try:
                    _fetch(client, url, path, dict(headers or {}), sha256, name)
                    return
                except httpx.RequestError as error:
                    if path.is_file():
                        return
                    if not left:
                        raise SettingsError(
                            f"cannot download {url}: {error or type(error).__name__}. What has "
                            "come is kept: the next start goes on from there"
                        ) from None
    except OSError as error:
        raise SettingsError(f"cannot store {url} at {path}: {error}") from None


def name_of(url: str) -> str:
    """The file's own name behind a digest of its address, since names repeat."""
    name = Path(unquote(urlsplit(url).path)).name[-MAX_NAME:] or "model"
    return f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"


def _fetch(
    client: httpx.Client, url: str, path: Path, headers: dict[str, str], sha256: str, name: str
) -> None:
    part = path.with_name(path.name + PART)
    etag, part_etag = (each.with_name(each.name + ETAG) for each in (path, part))
    begun = _text(part_etag)
    # What a checksum names is the same version whenever it comes.
    done = part.stat().st_size if part.is_file() and (begun or sha256) else 0
    if path.is_file() and (kept := _text(etag)):
        headers["if-none-match"] = kept
    if done:
        headers |= {"range": f"bytes={done}-"} | ({"if-range": begun} if begun else {})
    with client.stream("GET", url, headers=headers) as answer:
        if answer.status_code == 304 or (answer.status_code >= 500 and path.is_file()):
            return
        if answer.status_code == 416:  # the part is longer than the file is
            part.unlink()
            raise httpx.ReadError("what was kept of it does not fit")
        if not answer.is_success:
            raise StatusError(url, answer.status_code)
        if answer.status_code != 206:
            done = 0
        if not sha256:
            part_etag.write_text(answer.headers.get("etag", ""))
        size = int(answer.headers.get("content-length", 0)) + done
        check_room(url, path.parent, size - done)
        shown = name or path.name.partition("-")[2]
        with (
            part.open("ab" if done else "wb") as file,
            Progress(desc=shown, total=size, initial=done) as progress,
        ):
            for chunk in answer.iter_raw():
                file.write(chunk)
                progress.update(len(chunk))
    if size and part.stat().st_size != size:
        raise httpx.ReadError(f"{part.stat().st_size} of {size} bytes have come")
    _verify(url, part, sha256)
    os.replace(part, path)
    if not sha256:
        os.replace(part_etag, etag)


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def check_room(what: str, folder: Path, n_bytes: int, advice: str = "") -> None:
    """SettingsError if so many bytes are not free where ``folder`` is, or will be."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if n_bytes and n_bytes + ROOM > free:
        raise SettingsError(
            f"{what} needs {n_bytes / 2**30:.2f} GiB in {folder}, where {free / 2**30:.2f} GiB "
            f"are free{advice}"
        )


def _verify(url: str, part: Path, sha256: str) -> None:
    if not sha256:
        return
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        raise SettingsError(
            f"{url} has come with the SHA-256 {found}, expected {sha256}; it is removed: start "
            "again to download it anew"
        )
