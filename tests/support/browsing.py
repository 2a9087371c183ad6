"""The page in a window of a browser, as a person has it before them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

# The first is Chromium without what a person sees of it, which takes half the time of a processor.
PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")
WAIT = 60_000  # milliseconds, on a machine with much other work
# How many messages there are, and what the last answer answers; null while it grows, or the end of
# its text is still to be rendered.
ANSWERED = """() => {
  const all = [...document.querySelectorAll(".message")];
  const [asked, answer] = all.slice(-2);
  const isBusy = answer?.matches("[aria-busy=true], :has([aria-busy=true])");
  const isWhole = answer?.matches(".assistant") && !isBusy;
  return isWhole ? `${all.length} ${asked.textContent}` : null;
}"""
expect = sync_api.expect
expect.set_options(timeout=WAIT)


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; skips the test where there is none."""
    path = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if path is None:
        pytest.skip("there is no Chromium here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page of a server in a browser window of its own; what it logs is an error."""

    def __init__(self, browser: Any, url: str, **how: Any) -> None:
        self.context = browser.new_context(**how)
        self.context.set_default_timeout(WAIT)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda m: self.faults.append(m.text) if m.type == "error" else None)
        self.page.goto(url)

    def ask(self, text: str) -> None:
        """Wait for the whole answer: it may be there before anybody has seen it grow."""
        before = self.page.evaluate(ANSWERED)
        self.page.fill("#prompt", text)
        self.page.keyboard.press("Enter")
        end = time.monotonic() + WAIT / 1e3
        while self.page.evaluate(ANSWERED) in (None, before):
            assert time.monotonic() < end
            time.sleep(0.01)
        self.done()

    def done(self) -> None:
        self.page.wait_for_selector("#stop", state="hidden")

    def button(self, name: str, message: str = ".message.assistant") -> Any:
        return self.page.locator(message).last.get_by_role("button", name=name, exact=True)

    @property
    def answer(self) -> Any:
        return self.page.locator(".message.assistant .said").last


def text(locator: Any, expected: str) -> None:
    expect(locator).to_have_text(expected, timeout=WAIT)
