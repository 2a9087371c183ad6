from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gguf_serve.server.configure import SettingsError
from gguf_serve.server.sources.url import fetched
from tests.support.stand_in_hub import StandIn, stand_in

MODEL = b"GGUF" + bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture
def site() -> Iterator[StandIn]:
    with stand_in({"a/b": {"m.gguf": MODEL}}) as site:
        yield site


@pytest.fixture
def url(site: StandIn) -> str:
    return f"{site.url}/blob/a/b/m.gguf"


def test_a_file_is_downloaded_once_and_asked_about_at_each_start(
    site: StandIn, url: str, tmp_path: Path
) -> None:
    first = fetched(url, folder=tmp_path)
    assert first.read_bytes() == MODEL
    assert first.name.endswith("-m.gguf")
    assert fetched(url, folder=tmp_path) == first
    assert site.requests("/blob/")[-1]["if-none-match"]
    site.files["a/b"]["m.gguf"] = b"GGUFnew"
    assert fetched(url, folder=tmp_path).read_bytes() == b"GGUFnew"


def test_a_broken_download_goes_on_where_it_ended(site: StandIn, url: str, tmp_path: Path) -> None:
    site.cut = [1_500_000, 100]
    assert fetched(url, folder=tmp_path).read_bytes() == MODEL
    starts = [head["range"] for head in site.requests("/blob/") if "range" in head]
    assert starts == ["bytes=1500000-", "bytes=1500100-"]


def test_at_the_next_start_too_unless_it_is_another_version(
    site: StandIn, url: str, tmp_path: Path
) -> None:
    site.cut = [1_000_000, 0, 0]
    with pytest.raises(SettingsError, match="the next start goes on from there"):
        fetched(url, folder=tmp_path)
    n = len(site.requests("/blob/"))
    assert fetched(url, folder=tmp_path).read_bytes() == MODEL
    assert site.requests("/blob/")[n]["range"] == "bytes=1000000-"


def test_a_new_version_that_broke_off_is_not_taken_for_the_old_one(
    site: StandIn, url: str, tmp_path: Path
) -> None:
    fetched(url, folder=tmp_path)
    new = b"GGUF" + bytes(range(255)) * 8192
    site.files["a/b"]["m.gguf"] = new
    site.cut = [1_000_000]
    assert fetched(url, folder=tmp_path).read_bytes() == MODEL
    assert fetched(url, folder=tmp_path).read_bytes() == new
    n = len(site.requests("/blob/"))
    assert fetched(url, folder=tmp_path).read_bytes() == new
    assert [head.get("range") for head in site.requests("/blob/")[n:]] == [None]


def test_what_a_checksum_names_is_not_asked_about_again(
    site: StandIn, url: str, tmp_path: Path
) -> None:
    sha256 = hashlib.sha256(MODEL).hexdigest()
    first = fetched(url, folder=tmp_path, sha256=sha256)
    n = len(site.asked)
    assert fetched(url, folder=tmp_path, sha256=sha256) == first
    assert len(site.asked) == n


def test_a_server_that_leads_in_a_circle(url: str, tmp_path: Path) -> None:
    def circle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers={"location": str(request.url)})

    class Circling(httpx.Client):
        def __init__(self, **how: Any) -> None:
            super().__init__(transport=httpx.MockTransport(circle), **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx, "Client", Circling)
        with pytest.raises(SettingsError, match=r"cannot download .*redirects"):
            fetched(url, folder=tmp_path)


def test_offline_and_without_a_network(site: StandIn, url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--offline allows no download"):
        fetched(url, offline=True, folder=tmp_path)
    path = fetched(url, folder=tmp_path)
    assert fetched(url, offline=True, folder=tmp_path) == path
    with pytest.raises(SettingsError, match="cannot download http://127"):
        fetched("http://127.0.0.1:9/m.gguf", folder=tmp_path)


@pytest.mark.parametrize(
    ("address", "words"),
    [("ftp://x/m.gguf", "is no URL"), ("m.gguf", "is no URL"), ("", "is no URL")],
)
def test_what_is_no_url(address: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=words):
        fetched(address, folder=tmp_path)


def test_an_error_and_a_wrong_checksum(site: StandIn, url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the answer was 401"):
        fetched(f"{site.url}/other", folder=tmp_path)
    with pytest.raises(SettingsError, match=f"expected {'0' * 64}"):
        fetched(url, folder=tmp_path, sha256="0" * 64)
    assert not list(tmp_path.glob("*.gguf"))
    right = hashlib.sha256(MODEL).hexdigest()
    assert fetched(url, folder=tmp_path, sha256=right).read_bytes() == MODEL
