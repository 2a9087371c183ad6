"""Tools that templates read more of than is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguf_serve.engine.chat.format import chat_format
from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.chat.spelled import spelled_out
from gguf_serve.engine.errors import RequestError

USER = {"role": "user", "content": "U"}
NULLABLE = {"type": ["string", "null"]}
NESTED = {"type": "object", "properties": {"b": {"type": "string"}}}


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


def test_description_parameters_and_types_are_there():
    empty = {"type": "object", "properties": {}}
    assert spelled_out(tool()) == tool(description="", parameters=empty)
    nested = {"type": "object", "properties": {"e": {"type": "string"}}}
    properties = {"a": NULLABLE, "b": True, "c": {"items": NULLABLE}, "d": nested}
    parameters = {"type": "object", "properties": properties, "required": None}
    either = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    spelled = {
        "type": "object",
        "properties": {
            "a": either,
            "b": {},
            "c": {"items": either},
            "d": {**nested, "additionalProperties": {}},
        },
    }
    given = tool(description="d", parameters=parameters)
    assert spelled_out(given) == tool(description="d", parameters=spelled)
    assert given == tool(description="d", parameters=parameters)


def test_every_template_takes_every_tool(shared: Path):
    tools = [
        tool(),
        tool(description="d"),
        tool(parameters={"type": "object", "properties": {"a": {"type": "string"}}}),
        tool(description="d", parameters={}),
        tool(description="d", parameters={"type": "object", "properties": {"a": NULLABLE}}),
        tool(description="d", parameters={"properties": {"a": {"enum": ["x", 1]}}}),
        tool(description="d", parameters={"type": "object", "properties": {"a": {}}}),
        tool(description="d", parameters={"type": "object", "properties": {"a": NESTED}}),
        tool(
            description="d",
            parameters={
                "type": "object",
                "properties": {"a": {"type": "array", "items": {**NESTED, "required": ["b"]}}},
            },
        ),
    ]
    refused = {}
    for path in sorted((shared / "templates").glob("*.jinja")):
        template = ChatTemplate(path.read_text(encoding="utf-8"))
        for number, one in enumerate(tools):
            try:
                prompt = chat_format(template, [USER], tools=[one]).prompt
            except RequestError as error:
                refused[path.stem, number] = str(error)
            else:
                assert "U" in prompt
    assert refused == {}


def test_a_tool_that_a_template_takes_is_shown_as_it_is():
    template = ChatTemplate("{{ tools | tojson }}")
    assert chat_format(template, [USER], tools=[tool()]).prompt == (
        '[{"type": "function", "function": {"name": "f"}}]'
    )


@pytest.mark.parametrize("required", [True, False])
def test_calls_are_held_to_the_schema_as_it_was_given(required: bool):
    asks = ChatTemplate("{% for t in tools %}{{ t.function.description + '!' }}{% endfor %}")
    parameters = {"type": "object", "properties": {"a": NULLABLE}}
    given = [tool(description=None, parameters=parameters)]
    form = chat_format(asks, [USER], tools=given, tool_choice="required" if required else "auto")
    assert form.prompt == "!"
    assert form.grammar is not None
    assert '["string", "null"]' in form.grammar.text
