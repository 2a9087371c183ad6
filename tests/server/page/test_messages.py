"""What a message may have beside text: reasoning, tool calls, files."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from browsing import WAIT, Opened, expect, text
from images_and_sounds import AUDIO, VISION, png, wav
from pdf_files import pdf

from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.encoders.reader import MediaReader

pytestmark = pytest.mark.timeout(600)
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"of": "Paris"}}\n</tool_call>'
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: "
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>"
    "{% endfor %}\n{% endfor %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    'return {"name": ..., "arguments": ...} within <tool_call></tool_call>'
)
# What a browser makes of files that are dropped on the page or pasted into the field.
BRING = """([how, files]) => {
  const data = new DataTransfer();
  for (const {name, type, content} of files) {
    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
    data.items.add(new File([bytes], name, {type}));
  }
  const init = {bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data};
  const event = how === "drop" ? new DragEvent(how, init) : new ClipboardEvent(how, init);
  document.getElementById("prompt").dispatchEvent(event);
}"""


@pytest.fixture
def engine(fakes: Any) -> Any:
    return fakes.engine(fakes.say("Fine."), n_ctx=4000)


def bring(opened: Opened, how: str, *files: tuple[str, str, bytes]) -> None:
    """Drop or paste files, each a name, a type and its bytes, and wait until they are there."""
    told = [
        {"name": name, "type": kind, "content": base64.b64encode(content).decode()}
        for name, kind, content in files
    ]
    before = opened.page.locator("#attached li").count()
    opened.page.evaluate(BRING, [how, told])
    expect(opened.page.locator("#attached li")).to_have_count(before + len(files), timeout=WAIT)


def last_prompt(engine: Any) -> str:
    return bytes(max(id, 0) % 256 for id in engine.requests[-1].prompt).decode("utf-8", "replace")


def test_reasoning_is_folded_once_the_answer_begins(
    open_page: Any, engine: Any, fakes: Any
) -> None:
    engine.chat_template = ChatTemplate(TEMPLATE)
    engine.script = fakes.say("<think>\nLet me **see**.</think>\n\nParis")
    opened = open_page()
    opened.ask("Where?")
    thoughts = opened.page.locator(".message.assistant details.reasoning")
    text(opened.answer, "Paris")
    assert not thoughts.evaluate("e => e.open")
    thoughts.locator("summary").click()
    text(thoughts.locator("strong"), "see")
    assert opened.faults == []


def test_a_call_is_shown_and_takes_its_result(open_page: Any, engine: Any, fakes: Any) -> None:
    engine.chat_template = ChatTemplate(TEMPLATE)
    engine.script = fakes.say(CALL)
    opened = open_page()
    opened.page.click("#open-settings")
    opened.page.get_by_label("Tools", exact=True).fill(json.dumps([TOOL]))
    opened.page.get_by_role("button", name="Save").click()
    opened.ask("What of Paris?")
    call = opened.page.locator("details.call")
    text(call.locator("summary"), "Calls look_up")
    text(call.locator("pre"), '{\n  "of": "Paris"\n}')
    engine.script = fakes.say("A city.")
    call.get_by_label("Result of look_up").fill("The capital of France")
    call.get_by_role("button", name="Give the result").click()
    text(opened.answer, "A city.")
    opened.done()
    assert "tool: The capital of France" in last_prompt(engine)
    assert opened.faults == []


def test_files_are_dropped_and_pasted(open_page: Any, engine: Any) -> None:
    engine.media = MediaReader(VISION, AUDIO, n_embd=64)
    opened = open_page()
    sound = base64.b64decode(wav())
    bring(opened, "drop", ("red.png", "image/png", png()), ("a.wav", "audio/wav", sound))
    bring(opened, "paste", ("letter.pdf", "application/pdf", pdf(1)))
    opened.ask("What is this?")
    shown = opened.page.locator(".message.user")
    assert shown.locator("img[alt='red.png']").evaluate("e => e.complete && e.naturalWidth") == 56
    expect(shown.locator("audio[aria-label='a.wav']")).to_have_count(1)
    assert len(engine.requests[-1].media) == 2
    assert "Hello from a page" in last_prompt(engine)
    assert opened.faults == []
