"""Calls without their syntax: answers of Qwen2.5-Coder-1.5B as it wrote them, and near misses."""

from __future__ import annotations

import json

import pytest

from gguf_serve.engine.chat.delta import ChatDelta, ToolCallDelta
from gguf_serve.engine.chat.unmarked.calls import UnmarkedCalls, may_be_calls, read_calls

TOOLS = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city"],
    },
    "multiply": {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
        "required": ["a", "b"],
    },
}
PARIS = (
    '```json\n{\n  "name": "get_weather",\n  "arguments": {\n    "city": "Paris",\n'
    '    "unit": "celsius"\n  }\n}\n```'
)
PRODUCT = (
    '```json\n{\n  "name": "multiply",\n  "arguments": {\n    "a": 123,\n    "b": 456\n  }\n}\n```'
)
OTHER_TOOL = (
    '```json\n{\n  "name": "say_hello",\n  "arguments": {\n    "language": "French"\n  }\n}\n```'
)
ROME = {"city": "Rome"}


def answer(text: str, tools: object = TOOLS) -> tuple[str, list[ToolCallDelta]]:
    """What is shown of a text that is written a character at a time."""
    filter = UnmarkedCalls(tools)
    deltas = [filter.take(ChatDelta(letter)) for letter in text]
    deltas.append(filter.finish(ChatDelta()))
    return "".join(d.content for d in deltas), [call for d in deltas for call in d.calls]


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        (PARIS, "get_weather", {"city": "Paris", "unit": "celsius"}),
        (PRODUCT, "multiply", {"a": 123, "b": 456}),
        ('{"name": "get_weather", "arguments": {"city": "Rome"}}\n', "get_weather", ROME),
        ('{"name": "get_weather", "parameters": {"city": "Rome"}}', "get_weather", ROME),
        ('{"arguments": {"city": "Rome"}, "name": "get_weather"}', "get_weather", ROME),
        ('{{"name": "get_weather", "arguments": {"city": "Rome"}}}', "get_weather", ROME),
        (
            '```json\n{{"name": "get_weather", "arguments": {"city": "Rome"}}\n```',
            "get_weather",
            ROME,
        ),
        (
            '<tools>\n{"name":"get_weather","arguments":{"city":"Rome"}}\n</tools>',
            "get_weather",
            ROME,
        ),
        (
            '{"type": "function", "function": {"name": "get_weather", '
            '"arguments": "{\\"city\\": \\"Rome\\"}"}}',
            "get_weather",
            ROME,
        ),
    ],
)
def test_a_call(text, name, arguments):
    content, (call,) = answer(text)
    assert (content, call.index, call.name) == ("", 0, name)
    assert json.loads(call.arguments) == arguments


@pytest.mark.parametrize(
    "form", ["[{0}, {1}]", "{0}\n{1}", "{{{0}}}\n{{{1}}}", "```json\n{0}\n{1}\n```"]
)
def test_several_calls(form):
    objects = [json.dumps({"name": "get_weather", "arguments": {"city": c}}) for c in ("A", "B")]
    content, calls = answer(form.format(*objects))
    assert content == ""
    assert [(c.index, json.loads(c.arguments)["city"]) for c in calls] == [(0, "A"), (1, "B")]


@pytest.mark.parametrize(
    "text",
    [
        OTHER_TOOL,
        "Here you are: " + PARIS,
        PARIS + "\nThat is the call.",
        '{"name": "get_weather", "arguments": {}}',  # a city is missing
        '{"name": "get_weather", "arguments": {"city": 5}}',
        '{"name": "get_weather", "arguments": {"city": "A", "unit": "kelvin"}}',
        '{"name": "get_weather", "arguments": {"city": "A", "country": "B"}}',
        '{"name": "get_weather", "arguments": {"city": "A"}, "note": 1}',
        '{"name": "get_weather"}',
        '{"name": "Ada", "age": 36}',
        '{"name": "get_weather", "arguments": {"city": "Par',  # cut off
        '{"name": "multiply", "arguments": {"a": NaN, "b": 1}}',
        '{{"name": "get_weather", "arguments": {"city": "A"}}}}',
        "{{ city }} is a variable of templates",
        "[1, 2]",
        "```python\nprint({})\n```",
        "{",
        "",
    ],
)
def test_everything_else_is_text(text):
    assert answer(text) == (text, [])


def test_text_is_held_back_only_while_it_may_be_a_call():
    filter = UnmarkedCalls(TOOLS)
    assert filter.take(ChatDelta('```json\n{"na')).content == ""
    assert filter.take(ChatDelta('me": "Ada')).content == '```json\n{"name": "Ada'
    assert filter.take(ChatDelta('", ')).content == '", '
    for text in ("Hello", "``", "[1", '{"key"', '{"name": "other"', "```py", "{{{", "{{ city"):
        assert may_be_calls(text, TOOLS) is (text == "``")


def test_a_call_with_its_syntax_leaves_the_rest_alone():
    filter = UnmarkedCalls(TOOLS)
    filter.take(ChatDelta("{"))
    call = ToolCallDelta(0, "", "multiply", "{}")
    assert filter.take(ChatDelta(calls=(call,))) == ChatDelta("{", calls=(call,))
    assert filter.take(ChatDelta("[")).content == "["


def test_without_tools_nothing_is_held_back():
    assert UnmarkedCalls({}).take(ChatDelta(PARIS)).content == PARIS
    assert read_calls(PARIS, {}) == []
