"""Models of Hugging Face's hub, by ``huggingface_hub`` and in its own cache.

What another program has fetched there is used, and what is fetched here is there for others. An
interrupted download goes on where it ended; a file whose checksum is not the hub's is removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token, hf_hub_download, hf_hub_url, scan_cache_dir
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: its client's
    CacheNotFound,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoSibling
from msgspec import Struct

from gguf_serve.server.configure import SettingsError
from gguf_serve.server.sources.choice import (
    Repo,
    all_parts,
    choose_companion,
    choose_model,
    is_model,
    split_of,
    tag_of,
)
from gguf_serve.server.sources.progress import Progress
from gguf_serve.server.sources.url import StatusError, check_room, download

TIMEOUT = 15.0  # seconds for a repository's list of files
MOST_NAMED = 20  # files in an error


class Remote(Struct, frozen=True):
    """A file of a repository; size and SHA-256 where the hub says them."""

    path: str
    size: int = 0
    sha256: str = ""


class Found(Struct, frozen=True):
    """Paths on this disk."""

    model: Path
    mmproj: Path | None


class Hub:
    """``endpoint``: the hub's address (None: HF_ENDPOINT or Hugging Face); ``token`` likewise."""

    def __init__(
        self, *, token: str | None = None, offline: bool = False, endpoint: str | None = None,
        cache: Path | None = None,
    ) -> None:  # fmt: skip
        self._token = token
        self._offline = offline or constants.HF_HUB_OFFLINE
        self._endpoint = endpoint or os.environ.get("MODEL_ENDPOINT") or constants.ENDPOINT
        self._cache = Path(cache or constants.HF_HUB_CACHE)

    def find(self, repo: Repo, file: str | None, *, with_mmproj: bool) -> Found:
        """The model, downloaded if it is not there yet; SettingsError says why it cannot be had."""
        files = self._files(repo)
        paths = [each.path for each in files]
        if file is not None:
            model = file if file in paths else None
        else:
            model = choose_model(paths, repo.tag)
        if model is None:
            raise SettingsError(self._no_such(repo, file, paths))
        mmproj = choose_companion(paths, model, "mmproj") if with_mmproj else None
        wanted = all_parts(paths, model) + ([mmproj] if mmproj else [])
        local = self._fetched(repo, [each for each in files if each.path in wanted])
        return Found(local[model], local[mmproj] if mmproj else None)

    def _files(self, repo: Repo) -> list[Remote]:
        """Of the hub, or if nobody answers there what the cache has of them."""
        if not self._offline:
            try:
                # One question, asked once: the library would list a tree with tries for a minute.
                info = HfApi(self._endpoint, token=self._token).model_info(
                    repo.id, files_metadata=True, timeout=TIMEOUT
                )
                return [remote(each) for each in info.siblings or ()]
            except HfHubHTTPError as error:
                if not (error.response.status_code >= 500 and self._cached(repo)):
                    gated = isinstance(error, GatedRepoError)
                    status = error.response.status_code
                    raise SettingsError(refused(repo, status, gated=gated)) from None
            except (HTTPError, OSError) as error:
                if not self._cached(repo):
                    raise SettingsError(f"cannot reach {self._endpoint}: {error}") from None
        cached = self._cached(repo)
        if not cached:
            raise SettingsError(
                f"{repo.id} is not in the cache {self._cache}, and --offline allows no download"
            )
        return [Remote(path) for path in cached]

    def _cached(self, repo: Repo) -> list[str]:
        """What is there of the newest revision."""
        folder = self._folder(repo) / "snapshots"
        revisions = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime)
        if not revisions:
            return []
        newest = revisions[-1]
        return sorted(
            str(path.relative_to(newest).as_posix()) for path in newest.rglob("*") if path.is_file()
        )

    def _no_such(self, repo: Repo, file: str | None, paths: Sequence[str]) -> str:
        models = [path for path in paths if is_model(path)]
        named = ", ".join(models[:MOST_NAMED]) + (", ..." if len(models) > MOST_NAMED else "")
        wanted = file or (f"file for the tag {repo.tag!r}" if repo.tag else "GGUF file")
        return f"{repo.id} has no {wanted}; it has {named or 'no GGUF files'}"

    def _fetched(self, repo: Repo, files: Sequence[Remote]) -> dict[str, Path]:
        """Where each of them lies on this disk."""
        found = {each.path: self._local(repo, each) for each in files}
        missing = [each for each in files if found[each.path] is None]
        advice = " (HF_HUB_CACHE names another folder)"
        check_room(repo.id, self._cache, sum(each.size for each in missing), advice)
        for each in missing:
            found[each.path] = self._download(repo, each)
        return {path: local for path, local in found.items() if local is not None}

    def _local(self, repo: Repo, file: Remote) -> Path | None:
        """Where it lies in the cache, if all of it is there and as the hub has it now."""
        try:
            path = Path(self._get(repo, file, local_files_only=True))
        except LocalEntryNotFoundError:
            return None
        # The cache names what is kept by its checksum.
        return path if file.sha256 in ("", path.resolve().name) else None

    def _download(self, repo: Repo, file: Remote) -> Path:
        """Into the cache's place for its content, which the library then finds. Its own downloads
        begin anew after a break."""
        try:
            if file.sha256:
                address = hf_hub_url(repo.id, file.path, endpoint=self._endpoint)
                token = self._token or get_token()
                headers = {"authorization": f"Bearer {token}"} if token else {}
                content = self._folder(repo) / "blobs" / file.sha256
                download(address, content, headers=headers, sha256=file.sha256, name=file.path)
            return Path(self._get(repo, file, tqdm_class=Progress))
        except StatusError as error:
            raise SettingsError(refused(repo, error.status)) from None
        except HfHubHTTPError as error:
            raise SettingsError(refused(repo, error.response.status_code)) from None
        except (OSError, OfflineModeIsEnabled, EntryNotFoundError) as error:
            raise SettingsError(f"cannot download {file.path} of {repo.id}: {error}") from None

    def _folder(self, repo: Repo) -> Path:
        return self._cache / repo_folder_name(repo_id=repo.id, repo_type="model")

    def _get(self, repo: Repo, file: Remote, **how: Any) -> str:
        return str(
            hf_hub_download(
                repo.id, file.path, token=self._token, endpoint=self._endpoint,
                cache_dir=self._cache, **how,
            )
        )  # fmt: skip


def remote(file: RepoSibling) -> Remote:
    return Remote(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else "")


def refused(repo: Repo, status: int, *, gated: bool = False) -> str:
    """What to do about an answer of the hub that is none."""
    if gated or status == 403:
        return (
            f"{repo.id} is gated: accept its conditions on its page, then give a token of that "
            "account with HF_TOKEN or -hft"
        )
    if status in (401, 404):
        return (
            f"{repo.id} is not on the hub, or private: look at its name (it must have GGUF files), "
            "or give a token with HF_TOKEN or -hft"
        )
    if status == 429:
        return "the hub has had too many requests from here: wait some minutes, or give HF_TOKEN"
    return f"the hub answered {status} for {repo.id}"


def cached_models(cache: Path | None = None) -> Iterator[str]:
    """``user/name:TAG`` of every model in the cache."""
    try:
        repos = scan_cache_dir(cache or constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda each: each.repo_id):
        names = {
            file.file_path.relative_to(revision.snapshot_path).as_posix()
            for revision in repo.revisions
            for file in revision.files
        }
        models = (name for name in names if is_model(name) and split_of(name)[1] == 1)
        yield from (f"{repo.repo_id}:{tag}" for tag in sorted({tag_of(name) for name in models}))
