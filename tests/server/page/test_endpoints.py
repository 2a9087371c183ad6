from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from pdf_files import pdf

from gguf_serve.engine.stats import EngineStats
from gguf_serve.server.page.endpoints import FILES
from gguf_serve.server.page.process import MAX_PAGES

HTML = {"accept": "text/html,application/xhtml+xml"}


@pytest.fixture
def url(serve: Any, fakes: Any) -> str:
    return serve(fakes.engine())


def test_browsers_get_the_page_and_others_json(url: str) -> None:
    page = httpx.get(url, headers=HTML)
    assert page.text.startswith("<!doctype html>")
    assert "accept" in page.headers["vary"]
    assert httpx.get(url).json()["api"] == "/v1"


def test_all_files_that_the_page_names_are_there(url: str) -> None:
    named = {
        part.split('"')[0] for part in httpx.get(url, headers=HTML).text.split('"page/files/')[1:]
    }
    assert "main.js" in named
    for name in {*named, *(path.name for path in FILES.iterdir())}:
        answer = httpx.get(f"{url}/page/files/{name}")
        assert answer.status_code == 200, name
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = httpx.get(
            f"{url}/page/files/{name}", headers={"if-none-match": answer.headers["etag"]}
        )
        assert again.status_code == 304


def test_the_policy_allows_nothing_inline_or_foreign(url: str) -> None:
    policy = httpx.get(url, headers=HTML).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    markup = (FILES / "index.html").read_text()
    assert "<script>" not in markup
    assert "style=" not in markup
    assert "//" not in markup.replace("image/svg+xml", "")


def test_the_page_needs_no_key_but_what_it_asks_does(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(), api_keys=["secret"])
    assert httpx.get(url, headers=HTML).status_code == 200
    assert httpx.get(f"{url}/page/files/main.js").status_code == 200
    for method, path in [("POST", "html"), ("POST", "text"), ("GET", "state")]:
        assert httpx.request(method, f"{url}/page/{path}").status_code == 401
    assert httpx.get(f"{url}/page/files/../../props").status_code == 401
    assert httpx.get(f"{url}/page/files/%2e%2e/endpoints.py").status_code == 404


def test_the_page_is_there_while_the_model_loads(serve: Any) -> None:
    url = serve(None)
    assert httpx.get(url, headers=HTML).status_code == 200
    assert httpx.get(f"{url}/page/files/main.js").status_code == 200
    assert httpx.get(f"{url}/page/state").status_code == 503


def test_behind_a_prefix_relative_addresses_hold(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(), prefix="/x/y")
    moved = httpx.get(f"{url}/x/y", headers=HTML)
    assert moved.status_code == 307
    assert moved.headers["location"] == "y/"
    assert httpx.get(f"{url}/x/y/", headers=HTML).status_code == 200
    assert httpx.get(f"{url}/x/y/page/files/main.js").status_code == 200


def test_without_the_page(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(), page=False)
    assert httpx.get(url, headers=HTML).json()["api"] == "/v1"
    assert httpx.get(f"{url}/page/files/main.js").status_code == 404


def test_a_folder_in_the_page_s_place(serve: Any, fakes: Any, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.js").write_text("1")
    url = serve(fakes.engine(), page=tmp_path, api_keys=["secret"])
    assert httpx.get(url, headers=HTML).text == "mine"
    assert httpx.get(f"{url}/deep/a.js").text == "1"
    assert httpx.get(f"{url}/props").status_code == 401
    assert httpx.get(f"{url}/deep/b.js").status_code in (401, 404)


def test_markdown(url: str) -> None:
    assert httpx.post(f"{url}/page/html", json={"text": "*a*"}).json() == {
        "html": "<p><em>a</em></p>\n"
    }
    long = httpx.post(f"{url}/page/html", json={"text": "a" * 2**20})
    assert long.status_code == 400
    assert "524288" in long.json()["error"]["message"]


def test_a_text_that_takes_too_long_is_refused_and_the_next_is_not(url: str) -> None:
    deep = httpx.post(f"{url}/page/html", json={"text": "[" * 2**19}, timeout=60)
    assert deep.status_code in (200, 400)
    assert httpx.post(f"{url}/page/html", json={"text": "b"}, timeout=60).status_code == 200


def test_the_text_of_a_pdf(url: str) -> None:
    answer = httpx.post(f"{url}/page/text", content=pdf(2))
    assert answer.json() == {"text": "Hello from a page\n\nHello from a page"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a PDF", "not a PDF that can be read"),
        (b"", "not a PDF that can be read"),
        (pdf(1, password="x"), "has a password"),
        (pdf(MAX_PAGES + 1), f"more than {MAX_PAGES}"),
    ],
)
def test_a_pdf_that_cannot_be_read(url: str, content: bytes, reason: str) -> None:
    answer = httpx.post(f"{url}/page/text", content=content, timeout=60)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]


def test_the_server_s_state(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    engine.stats = lambda: EngineStats(
        n_prompt_tokens=7, prompt_seconds=0, n_generated_tokens=9, generation_seconds=0,
        n_decodes=1, n_busy_slots=1, n_tokens_max=1, n_processing=1, n_deferred=2, n_slots=4,
        n_preempted=0, n_cached_tokens=3, page_size=32, n_pages=10, n_pages_used=2,
        n_pages_cached=1,
    )  # fmt: skip
    state = httpx.get(f"{serve(engine)}/page/state").json()
    assert state["pages"] == {"size": 32, "all": 10, "used": 2, "cached": 1}
    assert (state["running"], state["waiting"], len(state["slots"])) == (1, 2, 4)
    assert state["totals"]["generated_tokens"] == 9
    assert state["resident_bytes"] > 10**7
