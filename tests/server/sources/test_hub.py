"""Against a stand-in of the hub: what is fetched, kept, resumed and refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gguf_serve.server.configure import SettingsError
from gguf_serve.server.sources.choice import Repo
from gguf_serve.server.sources.hub import Hub, cached_models
from tests.support.stand_in_hub import StandIn, stand_in

MODEL = b"GGUF" + bytes(range(256)) * (25 << 12)  # 25 MiB
REPO = Repo("org/tiny-GGUF")
FILES = {
    "tiny-Q4_K_M.gguf": MODEL,
    "tiny-Q8_0.gguf": b"GGUF8",
    "mmproj-Q8_0.gguf": b"GGUFp",
    "big-F16-00001-of-00002.gguf": b"GGUF1",
    "big-F16-00002-of-00002.gguf": b"GGUF2",
}


@pytest.fixture
def hub() -> Iterator[StandIn]:
    with stand_in({REPO.id: dict(FILES)}) as hub:
        yield hub


@pytest.fixture
def find(hub: StandIn, tmp_path: Path) -> Any:
    def run(repo: Repo = REPO, file: str | None = None, mmproj: bool = False, **how: Any) -> Any:
        reached = Hub(endpoint=how.pop("endpoint", hub.url), cache=tmp_path, **how)
        return reached.find(repo, file, with_mmproj=mmproj)

    return run


def test_a_model_is_fetched_once(find: Any, hub: StandIn) -> None:
    found = find(mmproj=True)
    assert found.model.read_bytes() == MODEL
    assert found.mmproj.read_bytes() == b"GGUFp"
    n = len(hub.requests("/blob/"))
    assert n == 2
    again = find(mmproj=True)
    assert again == found
    assert len(hub.requests("/blob/")) == n


def test_all_parts_of_a_split_model_lie_side_by_side(find: Any) -> None:
    found = find(file="big-F16-00001-of-00002.gguf")
    assert (found.model.parent / "big-F16-00002-of-00002.gguf").read_bytes() == b"GGUF2"


def test_a_new_version_is_fetched_anew(find: Any, hub: StandIn) -> None:
    find()
    hub.files[REPO.id]["tiny-Q4_K_M.gguf"] = b"GGUFnew"
    assert find().model.read_bytes() == b"GGUFnew"


def test_a_broken_download_goes_on(find: Any, hub: StandIn) -> None:
    hub.cut = [12 << 20]
    assert find().model.read_bytes() == MODEL
    ranges = [head.get("range") for head in hub.requests("/blob/") if "range" in head]
    assert any(int(each.split("=")[1].split("-")[0]) > 0 for each in ranges if each)


def test_one_that_breaks_off_for_good_is_kept_for_the_next_start(
    find: Any, hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.cut = [12 << 20, *[0] * 10]
    with pytest.raises(SettingsError, match=r"(?s)cannot download.*goes on from there"):
        find()
    hub.cut = []
    assert list(tmp_path.rglob("*.incomplete"))
    assert find().model.read_bytes() == MODEL


def test_other_bytes_than_the_hub_s_are_never_served(
    find: Any, hub: StandIn, tmp_path: Path
) -> None:
    hub.altered = True
    with pytest.raises(SettingsError, match=r"has come with the SHA-256 .* it is removed"):
        find()
    assert not [path for path in tmp_path.rglob("*.gguf") if path.exists()]
    hub.altered = False
    assert find().model.read_bytes() == MODEL


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "RepoNotFound", "not on the hub, or private"),
        (401, "GatedRepo", "is gated: accept its conditions"),
        (403, "GatedRepo", "is gated: accept its conditions"),
        (404, "RepoNotFound", "not on the hub, or private"),
        (429, "", "too many requests"),
        (418, "", "the hub answered 418"),
    ],
)
def test_refusals_say_what_to_do(
    find: Any, hub: StandIn, status: int, code: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.status[REPO.id], hub.code[REPO.id] = status, code
    with pytest.raises(SettingsError, match=words):
        find()


def test_the_token_goes_to_the_hub(find: Any, hub: StandIn) -> None:
    find(token="hf_secret")
    assert {head["authorization"] for head in hub.requests("/api/models")} == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    ("repo", "file", "words"),
    [
        (Repo(REPO.id, "Q2_K"), None, "has no file for the tag 'Q2_K'; it has tiny-Q4_K_M.gguf"),
        (REPO, "other.gguf", "has no other.gguf"),
    ],
)
def test_a_file_that_is_not_there(find: Any, repo: Repo, file: str | None, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        find(repo, file)


def test_offline_what_is_there_must_do(find: Any, hub: StandIn) -> None:
    with pytest.raises(SettingsError, match="--offline allows no download"):
        find(offline=True)
    assert hub.asked == []
    found = find()
    hub.asked.clear()
    assert find(offline=True) == found
    assert hub.asked == []


def test_without_a_network_what_is_there_is_used(find: Any, hub: StandIn) -> None:
    nowhere = "http://127.0.0.1:9"
    with pytest.raises(SettingsError, match="cannot reach http://127"):
        find(endpoint=nowhere)
    found = find()
    assert find(endpoint=nowhere) == found


def test_room_is_looked_at_first(find: Any, hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**28))
    with pytest.raises(SettingsError, match=r"needs 0.02 GiB in .*0.25 GiB are free"):
        find()
    assert hub.requests("/blob/") == []


def test_what_the_cache_has(find: Any, tmp_path: Path) -> None:
    assert list(cached_models(tmp_path / "none")) == []
    find()
    find(Repo(REPO.id, "Q8_0"))
    assert list(cached_models(tmp_path)) == [f"{REPO.id}:Q4_K_M", f"{REPO.id}:Q8_0"]
