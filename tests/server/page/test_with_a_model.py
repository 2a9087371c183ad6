"""What people do with the page, with a real model behind the whole server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import WAIT, Opened, expect, text
from hostile import KEYS, Server

from gguf_serve.server.demo import demo_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(
        demo_model(lambda done, total: None), [], tmp_path_factory.mktemp("log") / "log"
    )
    yield server
    server.close()


@pytest.fixture
def opened(browser: Any, server: Server) -> Iterator[Opened]:
    """With the key, greedily."""
    opened = Opened(browser, server.url)
    opened.page.fill("#key-field", KEYS["polite"])
    opened.page.get_by_role("button", name="Use it").click()
    settings(opened, {"Temperature": "0"})
    opened.faults.clear()  # the browser logs the answer that asked for the key
    yield opened
    assert opened.faults == []
    opened.context.close()


def settings(opened: Opened, values: dict[str, str]) -> None:
    opened.page.click("#open-settings")
    for label, value in values.items():
        opened.page.get_by_label(label, exact=True).fill(value)
    opened.page.get_by_role("button", name="Save").click()


def test_branches_and_tokens(opened: Opened) -> None:
    """Greedily an answer is the same again; an edited question has another; a token's alternative
    is what the answer goes on from."""
    opened.ask(FRANCE)
    text(opened.answer, PARIS)
    opened.button("Regenerate").click()
    text(opened.page.locator(".message.assistant .tools .quiet"), "2 of 2")
    text(opened.answer, PARIS)
    opened.done()
    settings(opened, {"Most tokens": "16"})  # greedily a small model may never end
    opened.button("Tokens").click()
    tokens = opened.page.locator(".tokens [role=option]")
    words = tokens.all_inner_texts()
    assert "".join(words).startswith(PARIS)
    tokens.nth(0).click()
    others = opened.page.locator(".alternatives button").all()
    other = next(one for one in others if not words[0].startswith(one.inner_text()))
    begin = other.inner_text()
    other.click()
    text(opened.page.locator(".message.assistant .tools .quiet"), "3 of 3")
    expect(opened.answer).to_have_text(re.compile("^" + re.escape(begin.strip())), timeout=WAIT)
    opened.done()


def test_stop_and_continue(opened: Opened) -> None:
    opened.page.fill("#prompt", "Write a long story about a lighthouse.")
    opened.page.keyboard.press("Enter")
    opened.answer.wait_for()
    opened.page.keyboard.press("Escape")
    opened.done()
    text(opened.page.locator(".note").last, "Stopped.")
    before = opened.answer.inner_text()
    opened.button("Continue").click()
    opened.page.wait_for_function(
        "n => [...document.querySelectorAll('.message.assistant .said')].at(-1)"
        ".innerText.length > n", arg=len(before) + 20,
    )  # fmt: skip
    opened.page.keyboard.press("Escape")
    opened.done()
    assert opened.answer.inner_text().startswith(before.rstrip()[:20])


def test_a_schema_and_the_view_of_the_server(opened: Opened) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}},
              "required": ["city"], "additionalProperties": False}  # fmt: skip
    settings(opened, {"JSON schema of the answer": json.dumps(schema)})
    opened.ask(FRANCE)
    assert json.loads(opened.answer.inner_text()) == {"city": "Paris"}
    opened.page.click("#open-server")
    expect(opened.page.locator("#server tbody tr")).to_have_count(4, timeout=WAIT)
    expect(opened.page.locator("#server polyline").first).to_be_attached()


def test_a_text_file_and_the_export(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("The secret word is BANANA.")
    opened.page.set_input_files("#files", str(tmp_path / "note.txt"))
    opened.ask("What is the secret word?")
    expect(opened.answer).to_contain_text("banana", ignore_case=True, timeout=WAIT)
    opened.page.click("#open-data")
    with opened.page.expect_download() as downloading:
        opened.page.get_by_role("button", name="Export all").click()
    downloading.value.save_as(tmp_path / "all.json")
    (kept,) = json.loads((tmp_path / "all.json").read_text())
    assert kept["title"].startswith("What is the secret word?")
