"""The page of the API in a browser: its forms send what they show."""

from __future__ import annotations

from typing import Any

import httpx
import pytest


@pytest.mark.slow
def test_a_form_asks_and_shows_the_answer(serve: Any, fakes: Any) -> None:
    """Behind a prefix and with a key; nothing of the page is missing, its icon either."""
    from browsing import chromium  # here: most tests need no playwright

    engine = fakes.engine()
    url = serve(engine, api_keys=["secret"], prefix="/x") + "/x"
    shown = httpx.get(url + "/docs", headers={"Authorization": "Bearer secret"}).text
    with chromium() as browser:
        page = browser.new_page()
        missing: list[str] = []
        page.on("response", lambda answer: missing.append(answer.url) if not answer.ok else None)
        page.route("**/docs", lambda route: route.fulfill(body=shown, content_type="text/html"))
        page.goto(url + "/docs")
        page.fill("#key", "secret")
        form = page.locator('form[data-path="/v1/chat/completions"]')
        page.locator("details", has=form).locator("summary").click()
        form.get_by_role("button").click()
        form.locator("pre", has_text="Hello wörld").wait_for(timeout=10_000)
        assert form.locator("pre").inner_text().startswith("200 OK")
        assert missing == []
    assert b"Name a colour." in bytes(id for id in engine.requests[-1].prompt if id < 256)
