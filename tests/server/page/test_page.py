"""The page in a browser: what people do with it, and that everybody can."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from browsing import WAIT, expect, text

from gguf_serve.engine.stats import EngineStats

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = pytest.mark.timeout(600)
STATS = EngineStats(
    n_prompt_tokens=7, prompt_seconds=0, n_generated_tokens=9, generation_seconds=0, n_decodes=1,
    n_busy_slots=1, n_tokens_max=1, n_processing=1, n_deferred=2, n_slots=4, n_preempted=0,
    n_cached_tokens=3, page_size=32, n_pages=10, n_pages_used=2, n_pages_cached=1,
)  # fmt: skip


@pytest.fixture
def engine(fakes: Any) -> Any:
    engine = fakes.engine(fakes.say("Hello **you**"), n_ctx=4000)
    engine.stats = lambda: STATS
    return engine


def messages_of(engine: Any) -> Any:
    """Of the last conversation that was written as a prompt to be answered."""
    return [call for call in engine.chat_template.calls if call["add_generation_prompt"]][-1][
        "messages"
    ]


def test_an_answer_is_rendered_and_kept(open_page: Any) -> None:
    opened = open_page()
    opened.ask("Hi")
    text(opened.answer.locator("strong"), "you")
    text(opened.page.locator("#conversations a"), "Hi")
    opened.page.reload()
    text(opened.answer, "Hello you")
    expect(opened.page.locator("#context-text")).to_contain_text("of 4,000 tokens")
    assert opened.faults == []


def test_the_last_rendering_waits_for_nothing(open_page: Any, engine: Any, fakes: Any) -> None:
    """Those of a text that grows keep a distance, which is here without an end."""
    engine.script = fakes.say("Hello **you**", pause=0.05)
    opened = open_page()
    opened.page.evaluate(
        """() => {
            const later = setTimeout;
            window.setTimeout = (act, wait) => later(act, wait >= 150 ? 2 ** 30 : wait);
        }"""
    )
    opened.ask("Hi")
    text(opened.answer.locator("strong"), "you")


def test_branches_by_editing_and_regenerating(open_page: Any, engine: Any, fakes: Any) -> None:
    opened = open_page()
    opened.ask("One")
    engine.script = fakes.say("Second")
    opened.button("Regenerate").click()
    text(opened.answer, "Second")
    opened.done()
    opened.button("The version before").click()
    text(opened.answer, "Hello you")
    opened.button("Edit", ".message.user").click()
    opened.page.get_by_label("The new text").fill("Another")
    opened.page.get_by_role("button", name="Send", exact=True).first.click()
    text(opened.answer, "Second")
    opened.done()
    text(opened.page.locator(".message.user .said").last, "Another")
    opened.button("The version before", ".message.user").click()
    text(opened.page.locator(".message.user .said").last, "One")
    assert messages_of(engine)[-1]["content"] == "Another"
    assert opened.faults == []


def test_stop_and_continue(open_page: Any, engine: Any, fakes: Any) -> None:
    engine.script = fakes.say("a" * 3000, pause=0.01)
    opened = open_page()
    opened.page.fill("#prompt", "Go")
    opened.page.keyboard.press("Enter")
    expect(opened.answer).to_contain_text("aaaa", timeout=WAIT)
    opened.page.keyboard.press("Escape")
    opened.done()
    end = time.monotonic() + WAIT / 1e3
    while not engine.cancelled:  # the server hears of it a moment later
        assert time.monotonic() < end
        time.sleep(0.01)
    text(opened.page.locator(".note").last, "Stopped.")
    engine.script = fakes.say("END")
    opened.button("Continue").click()
    expect(opened.answer).to_contain_text("aEND", timeout=WAIT)
    assert opened.faults == []


def test_tokens_show_their_alternatives_and_one_goes_on(
    open_page: Any, engine: Any, fakes: Any
) -> None:
    opened = open_page()
    engine.script = fakes.say("abc")
    opened.ask("Hi")
    opened.button("Tokens").click()
    tokens = opened.page.locator(".tokens [role=option]")
    expect(tokens).to_have_count(3)
    assert "p2" in tokens.nth(1).get_attribute("class")  # exp(-1) is 37 %
    opened.page.locator(".tokens").focus()
    opened.page.keyboard.press("ArrowRight")
    opened.page.keyboard.press("ArrowRight")
    text(opened.page.locator(".alternatives p"), "Chosen: b (37 %). In its place:")
    engine.script = fakes.say("!")
    opened.page.locator(".alternatives").get_by_role("button", name="c", exact=True).click()
    text(opened.answer, "ac!")
    opened.done()
    text(opened.page.locator(".message.assistant .tools .quiet"), "2 of 2")
    assert opened.faults == []


def test_what_a_model_writes_stays_text(open_page: Any, engine: Any, fakes: Any) -> None:
    act = "document.title='x'"
    evil = f'<script>{act}</script><img src=x onerror="{act}"> [a](javascript:{act})'
    engine.script = fakes.say(evil)
    opened = open_page()
    opened.ask("<b>Hi</b>")
    expect(opened.answer).to_contain_text("<script>", timeout=WAIT)
    assert opened.page.locator("#messages img, #messages script, #messages b").count() == 0
    assert opened.page.title() == "<b>Hi</b>"
    assert opened.faults == []


def test_settings_are_sent_and_kept(open_page: Any, engine: Any) -> None:
    opened = open_page()
    opened.page.click("#open-settings")
    opened.page.get_by_label("System prompt").fill("Be brief.")
    opened.page.get_by_label("Temperature", exact=True).fill("0.25")
    opened.page.get_by_label("JSON schema of the answer").fill("{")
    opened.page.get_by_role("button", name="Save").click()
    expect(opened.page.locator("#settings .fault")).to_contain_text("is not JSON")
    opened.page.get_by_label("JSON schema of the answer").fill('{"type": "string"}')
    opened.page.get_by_label("Colours").select_option("dark")
    opened.page.get_by_role("button", name="Save").click()
    opened.ask("Hi")
    assert engine.requests[-1].sampling.temperature == 0.25
    assert messages_of(engine)[0] == {"role": "system", "content": "Be brief."}
    assert engine.compiled
    opened.page.reload()
    expect(opened.page.locator("html")).to_have_attribute("data-theme", "dark", timeout=WAIT)
    opened.page.click("#open-settings")
    assert opened.page.get_by_label("Temperature", exact=True).input_value() == "0.25"
    assert opened.faults == []


def test_every_number_of_the_settings_is_one_of_the_server_s(open_page: Any) -> None:
    opened = open_page()
    names = opened.page.evaluate(
        "import('./page/files/options.js').then(m => m.NUMBERS.map(n => n[0]))"
    )
    params = opened.page.evaluate(
        "fetch('props').then(r => r.json()).then(p => p.default_generation_settings.params)"
    )
    assert set(names) <= set(params)
    numbers = {name for name, value in params.items() if type(value) in (int, float)}
    others = {name for name in numbers if name.startswith("speculative.")}
    assert numbers - set(names) - others <= {"n_predict", "n_keep", "n_discard", "n_probs"}


def test_files_go_with_a_message(open_page: Any, engine: Any, tmp_path: Path) -> None:
    opened = open_page()
    (tmp_path / "notes.txt").write_text("forty-two")
    opened.page.set_input_files("#files", str(tmp_path / "notes.txt"))
    text(opened.page.locator("#attached li").first, "notes.txt✕")
    opened.ask("What?")
    content = messages_of(engine)[-1]["content"]
    assert "forty-two" in json.dumps(content)
    (tmp_path / "cat.png").write_bytes(b"\x89PNG")
    opened.page.set_input_files("#files", str(tmp_path / "cat.png"))
    text(opened.page.locator("#status"), "cat.png: this model takes no images")
    assert opened.faults == []


def test_search_rename_delete_export_and_import(open_page: Any, tmp_path: Path) -> None:
    opened = open_page()
    page = opened.page
    opened.ask("About apples")
    page.click("#new")
    opened.ask("About pears")
    page.fill("#search", "apples")
    expect(page.locator("#conversations a")).to_have_count(1, timeout=WAIT)
    text(page.locator("#conversations a"), "About apples")
    page.fill("#search", "")
    page.get_by_label("Rename About pears").click()
    page.get_by_label("Title").fill("Plums")
    page.get_by_role("button", name="Rename", exact=True).click()
    text(page.locator("#title"), "Plums")
    page.click("#open-data")
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Export all").click()
    file = tmp_path / "all.json"
    downloading.value.save_as(file)
    assert {each["title"] for each in json.loads(file.read_text())} == {"About apples", "Plums"}
    page.locator("#data").get_by_label("Close").click()
    for name in ("Plums", "About apples"):
        page.get_by_label(f"Delete {name}").click()
        page.get_by_role("button", name="Delete", exact=True).last.click()
    expect(page.locator("#conversations a")).to_have_count(0, timeout=WAIT)
    page.click("#open-data")
    page.set_input_files("#import", str(file))
    text(page.locator("#data [role=status]"), "2 taken in.")
    expect(page.locator("#conversations a")).to_have_count(2, timeout=WAIT)
    assert opened.faults == []


def test_a_key_is_asked_for_once(open_page: Any) -> None:
    opened = open_page(api_keys=["secret"])
    opened.page.fill("#key-field", "wrong")
    opened.page.get_by_role("button", name="Use it").click()
    expect(opened.page.locator("#key")).to_contain_text("does not know the key", timeout=WAIT)
    opened.page.fill("#key-field", "secret")
    opened.page.get_by_role("button", name="Use it").click()
    opened.ask("Hi")
    text(opened.answer, "Hello you")


def test_the_same_as_code(open_page: Any) -> None:
    opened = open_page()
    opened.ask("It's")
    opened.button("Code").click()
    code = opened.page.locator("#code pre")
    expect(code).to_contain_text("curl -N http://127.0.0.1")
    opened.page.get_by_label("Language").select_option("Python")
    compile(code.inner_text(), "example", "exec")
    assert '"content": "It\'s"' in code.inner_text()


def test_the_view_of_the_server(open_page: Any) -> None:
    opened = open_page()
    opened.page.click("#open-server")
    expect(opened.page.locator("#server tbody tr")).to_have_count(4, timeout=WAIT)
    expect(opened.page.locator("#server figcaption").nth(3)).to_contain_text("20 %")
    line = opened.page.locator("polyline").first
    expect(line).to_have_attribute("points", re.compile(r"\d \d"), timeout=WAIT)
    assert opened.faults == []


def test_an_error_is_said(open_page: Any, engine: Any) -> None:
    opened = open_page()
    opened.page.fill("#prompt", "x" * 5000)
    opened.page.keyboard.press("Enter")
    expect(opened.page.locator(".note.fault")).to_contain_text("context", timeout=WAIT)


@pytest.mark.parametrize(
    "how", [{}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 640}}]
)
def test_everybody_can_use_it(open_page: Any, engine: Any, fakes: Any, how: dict[str, Any]) -> None:
    """axe finds nothing, at any width, in both colours, with all that a conversation can show."""
    engine.script = fakes.say(
        "# A\n```python\nx = 1  # y\n```\n| a |\n|---|\n| 1 |\n\n$x^2$ [l](https://x.org)"
    )
    opened = open_page(**how)
    page = opened.page
    opened.ask("Hi")
    opened.answer.locator("table").wait_for()
    found = [axe.Axe().run(page)]
    opened.button("Tokens").click()
    page.locator(".tokens [role=option]").nth(1).click()
    found.append(axe.Axe().run(page))
    if "viewport" in how:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.click("#show")
    page.click("#open-settings")
    found.append(axe.Axe().run(page))
    page.locator("#settings").get_by_label("Close").click()
    page.click("#open-server")
    page.locator("#server tbody tr").first.wait_for()
    found.append(axe.Axe().run(page))
    for result in found:
        assert result.violations_count == 0, result.generate_report()
    assert opened.faults == []
