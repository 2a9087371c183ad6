"""Custom (freeform) tools, as Codex has one for patches: texts in, texts back."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.server.dialects.responses.input import chat_body
from gguf_serve.server.dialects.responses.tools import custom_input

GRAMMAR = 'start: "*** Begin Patch" LF'
PATCH: dict[str, Any] = {
    "type": "custom", "name": "apply_patch", "description": "Edit files",
    "format": {"type": "grammar", "syntax": "lark", "definition": GRAMMAR},
}  # fmt: skip
TEXT = '*** Begin Patch\n+ "ä"\n'
CALLED = json.dumps({"name": "apply_patch", "arguments": {"input": TEXT}})
CALL = f"<tool_call>\n{CALLED}\n</tool_call>"
SOURCE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% for tool in tools %}{{ tool | tojson }}{% endfor %}<tool_call></tool_call>"
)


@pytest.fixture
def url(serve: Any, fakes: Any) -> str:
    engine = fakes.engine(fakes.say(CALL))
    engine.chat_template = ChatTemplate(SOURCE)
    return str(serve(engine))


def made(**fields: Any) -> dict[str, Any]:
    return chat_body({"input": "hi", **fields})


def test_the_model_sees_a_function_of_one_text() -> None:
    body = made(tools=[PATCH], tool_choice={"type": "custom", "name": "apply_patch"})
    (tool,) = body["tools"]
    function = tool["function"]
    assert (tool["type"], function["name"]) == ("function", "apply_patch")
    assert function["description"].startswith("Edit files\n\nThe input must match this grammar")
    assert GRAMMAR in function["description"]
    assert function["parameters"]["required"] == ["input"]
    assert (body["tool_choice"]["type"], body["tool_choice"]["name"]) == ("function", "apply_patch")


def test_a_regular_expression_is_enforced() -> None:
    form = {"type": "grammar", "syntax": "regex", "definition": "a|b"}
    (tool,) = made(tools=[PATCH | {"format": form}])["tools"]
    schema = tool["function"]["parameters"]["properties"]["input"]
    assert schema["pattern"] == "^(?:a|b)$"
    (tool,) = made(tools=[{"type": "custom", "name": "x"}])["tools"]
    assert "pattern" not in tool["function"]["parameters"]["properties"]["input"]


@pytest.mark.parametrize("form", [{"type": "grammar"}, {"type": "cfg"}, "text", {"syntax": "lark"}])
def test_formats_that_are_none(url: str, form: Any) -> None:
    body = {"input": "hi", "tools": [PATCH | {"format": form}]}
    refused = httpx.post(url + "/v1/responses", json=body)
    assert refused.status_code == 400
    assert "tools[0].format" in refused.json()["error"]["message"]


def test_a_call_and_its_result_are_in_the_history() -> None:
    call = {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": TEXT}
    output = {"type": "custom_tool_call_output", "call_id": "c", "output": "Done"}
    turn, result = made(input=[call, output], tools=[PATCH])["messages"]
    (known,) = turn["tool_calls"]
    assert json.loads(known["function"]["arguments"]) == {"input": TEXT}
    assert result == {
        "role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "Done"}],
    }  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_calls(url: str, client: Any, stream: bool) -> None:
    answer = client(url).responses.create(model="m", input="hi", tools=[PATCH], stream=stream)
    if stream:
        events = list(answer)
        kinds = [event.type.removeprefix("response.") for event in events]
        assert kinds[2:6] == [
            "output_item.added", "custom_tool_call_input.delta",
            "custom_tool_call_input.done", "output_item.done",
        ]  # fmt: skip
        assert events[3].delta == events[4].input == TEXT
        answer = events[-1].response
    (item,) = answer.output
    assert (item.type, item.name, item.input) == ("custom_tool_call", "apply_patch", TEXT)
    assert item.call_id
    assert item.id.startswith("ctc_")


def test_arguments_that_were_cut_off_are_shown_as_they_are() -> None:
    assert custom_input('{"input": "*** Beg') == '{"input": "*** Beg'
    assert custom_input('{"other": 1}') == '{"other": 1}'
    assert custom_input('{"input": "a\\nb"}') == "a\nb"
