"""Tools in namespaces, and tools among the items of the input."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.server.dialects.responses.input import chat_body

TOOL = {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}}
NOTES = {"type": "namespace", "name": "mcp__notes", "description": "Notes", "tools": [TOOL]}
CALL = '<tool_call>\n{"name": "mcp__notes__look_up", "arguments": {}}\n</tool_call>'
SOURCE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>"
    "{% endfor %}\n{% endfor %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    'return {"name": ..., "arguments": ...} within <tool_call></tool_call>'
)


def made(**fields: Any) -> dict[str, Any]:
    return chat_body({"input": "hi", **fields})


def names(body: dict[str, Any]) -> list[str]:
    return [tool["function"]["name"] for tool in body["tools"]]


@pytest.mark.parametrize(
    ("namespace", "name"),
    [("mcp__notes", "mcp__notes__look_up"), ("mcp__notes__", "mcp__notes__look_up")],
)
def test_a_namespace_stands_in_front(namespace: str, name: str) -> None:
    tools = [{"type": "web_search"}, TOOL, NOTES | {"name": namespace}]
    assert names(made(tools=tools)) == ["look_up", name]


def test_tools_among_the_items() -> None:
    item = {"type": "additional_tools", "role": "developer", "tools": [NOTES]}
    body = made(input=[item, {"role": "user", "content": "hi"}], tools=[TOOL])
    assert names(body) == ["look_up", "mcp__notes__look_up"]
    assert len(body["messages"]) == 1


def test_calls_and_choices_have_the_names_that_the_model_knows() -> None:
    named = {"type": "function", "name": "look_up", "namespace": "mcp__notes"}
    call = {"type": "function_call", "call_id": "c", "arguments": "{}"}
    body = made(input=[call | named | {"type": "function_call"}], tools=[NOTES], tool_choice=named)
    (turn,) = body["messages"]
    assert turn["tool_calls"][0]["function"]["name"] == "mcp__notes__look_up"
    assert body["tool_choice"]["name"] == "mcp__notes__look_up"
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [named]}
    body = made(tools=[NOTES, TOOL], tool_choice=allowed)
    assert [tool["name"] for tool in body["tool_choice"]["tools"]] == ["mcp__notes__look_up"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_has_the_namespace_apart(
    serve: Any, fakes: Any, client: Any, stream: bool
) -> None:
    engine = fakes.engine(fakes.say(CALL))
    engine.chat_template = ChatTemplate(SOURCE)
    answer = client(serve(engine)).responses.create(
        model="m", input="hi", tools=[TOOL, NOTES], stream=stream
    )
    if not stream:
        items = answer.output
    else:
        events = list(answer)
        items = [e.item for e in events if e.type.startswith("response.output_item.")]
        assert events[-1].response.output[0].namespace == "mcp__notes"
        (done,) = (e for e in events if e.type == "response.function_call_arguments.done")
        assert done.name == "look_up"
    assert {(item.type, item.name, item.namespace) for item in items} == {
        ("function_call", "look_up", "mcp__notes")
    }


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([NOTES | {"name": None}], r"tools\[0\].name"),
        ([TOOL, NOTES | {"tools": 5}], r"tools\[1\].tools"),
        ([TOOL | {"name": "mcp__notes__look_up"}, NOTES], r"tools\[1\].tools\[0\]"),
        ([NOTES | {"tools": [{"type": "function"}]}], "tools"),
    ],
)
def test_refusals_name_the_tool(
    serve: Any, fakes: Any, client: Any, tools: Any, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client(serve(fakes.engine())).responses.create(model="m", input="hi", tools=tools)
