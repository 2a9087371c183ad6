"""Calls as the templates write those of earlier turns: what models have learned to write."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from score_templates import compiled, joined
from test_constrain import verdict

from gguf_serve.engine.chat.format import ChatFormat, ChatParser, chat_format
from gguf_serve.engine.chat.prompt import added
from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.errors import RequestError

USER = {"role": "user", "content": "U"}
PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "options": {"type": "object", "additionalProperties": {"type": "string"}},
    "tags": {"type": "array", "items": {"type": "string"}},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "d",
            "parameters": {"type": "object", "properties": PROPERTIES, "required": ["city"]},
        },
    }
    for name in ("get_weather", "look_up")
]
CALLS = {
    "simple": [("get_weather", {"city": "Paris"})],
    "all types": [
        (
            "look_up",
            {
                "city": 'New "York" & <b>',
                "days": 3,
                "options": {"a": "1", "b": "x\ny"},
                "tags": ["x", "y z"],
            },
        )
    ],
    "two": [("get_weather", {"city": "Paris"}), ("look_up", {"city": "Rome", "days": 1})],
}
END_OF_TURN = r"(?<=.)(?:</s>|<\|(?:eot_id|message_sep|START_OF_TURN_TOKEN)\|>)"
MARGIN = 20  # characters before the difference, where a mark may begin
# These do not write what they ask of the model: no calls at all, one only, or refuse two.
SILENT = {
    *("HuggingFaceTB-SmolLM3-3B", "LFM2-8B-A1B", "LFM2.5-Instruct"),
    *("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "ibm-granite-granite-3.3-2B-Instruct"),
    *("google-gemma-2-2b-it", "llama-cpp-rwkv-world", "microsoft-Phi-3.5-mini-instruct"),
}
ONE_ONLY = {"GigaChat3-10B-A1.8B", "GigaChat3.1-10B-A1.8B", "openai-gpt-oss-120b"}
# Values of parameters in Python's notation: read, but not what the grammar makes of them.
IN_PYTHON = {"ByteDance-Seed-OSS", "openbmb-MiniCPM5-1B"}


def history(chat: ChatFormat, template: ChatTemplate, calls: list[tuple[str, Any]]) -> str:
    """The text of the calls in an assistant's turn, as the template writes it."""
    tool_calls = [
        {
            "id": f"call0000{place}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for place, (name, arguments) in enumerate(calls)
    ]
    answer = {"role": "assistant", "content": "", "tool_calls": tool_calls}
    before = template.render([USER], tools=TOOLS, add_generation_prompt=False)
    text = template.render([USER, answer], tools=TOOLS, add_generation_prompt=False)
    text = text[max(0, len(text) - len(added(before, text)) - MARGIN) :]
    syntax = chat.turn.layout.syntax
    assert syntax is not None
    marks = (*syntax.starts(chat.turn.tools), *syntax.dropped)
    starts = [text.find(m) for m in marks if m in text and not m.startswith("</")]
    assert starts, text
    ends = [text.rfind(mark) + len(mark) for mark in marks if mark in text]
    raw = text[min(starts) : max(ends) if syntax.dropped else None]
    return re.split(END_OF_TURN, raw, flags=re.DOTALL)[0]


@pytest.mark.parametrize("kind", CALLS)
def test_calls_of_the_history_are_read_and_accepted(shared, kind):
    different, compared = {}, 0
    for path in sorted((shared / "templates").glob("*.jinja")):
        outcome = round_trip(path, CALLS[kind])
        compared += 1
        if outcome:
            different[path.stem] = outcome
    assert different == {}
    assert compared == 70


def round_trip(path: Path, calls: list[tuple[str, Any]]) -> str:
    template = compiled(path, "<s>", "</s>")
    if path.stem in SILENT or (len(calls) > 1 and path.stem in ONE_ONLY):
        return ""
    chat = chat_format(
        template, [USER], tools=TOOLS, tool_choice="required", parallel_tool_calls=True
    )
    if chat.turn.layout.syntax is None:
        return ""
    try:
        raw = history(chat, template.for_tools(True), calls)
    except RequestError as error:
        return str(error)
    parser = ChatParser(chat.turn)
    message = joined([parser.push(raw), parser.finish()])
    if [(name, json.loads(text)) for name, _, text in message.calls] != calls:
        return f"read as {message} from {raw}"
    assert chat.grammar is not None
    found = verdict(replace(chat.grammar, reasoning=None, prefix=""), raw)
    if found == "complete" or (path.stem in IN_PYTHON and found.startswith("refused")):
        return ""
    return f"{found} in {raw}"


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": []},
        {"properties": {"a": True, "b": None, "c": {"type": {}}, "d": {"enum": 3}}},
        {"properties": {"a": {"anyOf": [{"$ref": "#/properties/a"}]}}, "required": "a"},
        {"$ref": "#"},
        {"type": "array"},
    ],
)
def test_schemas_that_make_no_sense_do_no_harm(shared, parameters):
    function = {"name": "f", "description": "d", "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    formats = 0
    for path in sorted((shared / "templates").glob("*.jinja")):
        template = compiled(path, "<s>", "</s>")
        try:
            chat = chat_format(template, [USER], tools=tools)
        except RequestError:  # the template cannot make anything of them
            continue
        formats += 1
        for raw in (FUNCTION_F, FUNCTION_F.replace("f", "g", 1)):
            parser = ChatParser(chat.turn)
            joined([parser.push(raw), parser.finish()])
    assert formats > 30


FUNCTION_F = "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"
