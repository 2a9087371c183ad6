"""What a chat template can do, found by rendering it with marked texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2.exceptions import TemplateError

from gguf_serve.engine.chat.caps import Caps, Message, ReasoningField, with_reasoning

# Renders messages, tools (None: absent) and further variables; raises as Jinja does.
Render = Callable[[list[Message], list[dict[str, Any]] | None, dict[str, Any]], str]

# What a template can raise: its own exceptions, and whatever its operations do to the values.
RENDER_ERRORS: tuple[type[Exception], ...] = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)

_SYSTEM = "MARKED-SYSTEM"
_USER = "MARKED-USER"
_ANSWER = "MARKED-ANSWER"
_REASONING = "MARKED-REASONING"
_TOOLS = ("marked_tool_a", "marked_tool_b")
_ARGUMENT = "marked_argument"
_RESULT = "MARKED-RESULT"


def probe(render: Render) -> Caps:
    """Render marked conversations and see which marks arrive."""

    def shows(marks: tuple[str, ...], messages: list[Message], **tools: Any) -> bool:
        return all(mark in _attempt(render, messages, **tools) for mark in marks)

    user = {"role": "user", "content": _USER}
    as_object = [user, _call(_TOOLS[:1], {_ARGUMENT: 1}), *_results(1)]
    as_string = [user, _call(_TOOLS[:1], f'{{"{_ARGUMENT}":1}}'), *_results(1)]
    objects = _takes_objects(render, as_object)
    calls = objects or shows((_TOOLS[0], _ARGUMENT), as_string, tools=_definitions())
    reasoning_field = next((f for f in _REASONING_FIELDS if _takes_reasoning(render, f)), None)
    both = [
        user,
        _call(_TOOLS, {_ARGUMENT: 1} if objects else "{}"),
        *_results(2),
        {"role": "assistant", "content": _ANSWER},
    ]
    return Caps(
        supports_system_role=shows((_SYSTEM,), [{"role": "system", "content": _SYSTEM}, user]),
        supports_string_content=shows((_USER,), [user]),
        # With reasoning as a part (Ministral) llama.cpp still hands over joined texts.
        supports_typed_content=_takes_parts(render) and reasoning_field != "part",
        supports_tools=shows(_TOOLS, [user], tools=_definitions()),
        supports_tool_calls=calls,
        supports_parallel_tool_calls=calls and shows(_TOOLS, both),
        supports_object_arguments=objects,
        supports_tool_responses=shows((_RESULT,), as_object if objects else as_string),
        supports_preserve_reasoning=_preserves(render, reasoning_field),
        supports_reasoning_effort=_reads_effort(render),
        reasoning_field=reasoning_field,
    )


_REASONING_FIELDS: tuple[ReasoningField, ...] = ("reasoning_content", "thinking", "part")


def _takes_reasoning(render: Render, field: ReasoningField) -> bool:
    answer = with_reasoning({"role": "assistant", "content": _ANSWER}, _REASONING, field)
    text = _attempt(render, [{"role": "user", "content": _USER}, answer])
    quoted = (f"'{_REASONING}'", f'"{_REASONING}"')  # the repr or the JSON of a typed part
    return _REASONING in text and not any(mark in text for mark in quoted)


def _takes_parts(render: Render) -> bool:
    parts = [{"type": "text", "text": _USER}]
    text = _attempt(render, [{"role": "user", "content": parts}])
    return _USER in text and "'type'" not in text and '"type"' not in text


def _takes_objects(render: Render, conversation: list[Message]) -> bool:
    """Arguments given as an object come out as something else than Python's repr of a dict."""
    text = _attempt(render, conversation)
    return _ARGUMENT in text and f"'{_ARGUMENT}'" not in text


def _preserves(render: Render, field: ReasoningField | None) -> bool:
    """Reasoning of a turn before the last question stays if the request asks for it."""
    if field != "reasoning_content":
        return False
    answer = {"role": "assistant", "content": _ANSWER, field: _REASONING}
    user = {"role": "user", "content": _USER}
    return _REASONING in _attempt(render, [user, answer, user], preserve_reasoning=True)


def _reads_effort(render: Render) -> bool:
    """Whether any value of ``reasoning_effort`` changes the prompt."""
    turns = [{"role": "user", "content": _USER}]
    efforts = ("none", "low", "high", "max")
    prompts = {
        _attempt(render, turns, reasoning_effort=effort, add_generation_prompt=True)
        for effort in efforts
    }
    return len(prompts) > 1


def _attempt(
    render: Render,
    messages: list[Message],
    tools: list[dict[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """The rendered text, "" where the template refuses the messages."""
    try:
        return render(messages, tools, variables)
    except RENDER_ERRORS:
        return ""


def _call(names: tuple[str, ...], arguments: Any) -> Message:
    functions = [{"name": name, "arguments": arguments} for name in names]
    calls = [
        {"id": f"call0000{i}", "type": "function", "function": function}
        for i, function in enumerate(functions)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _results(n: int) -> list[Message]:
    return [
        {"role": "tool", "tool_call_id": f"call0000{i}", "name": _TOOLS[i], "content": _RESULT}
        for i in range(n)
    ]


def _definitions() -> list[dict[str, Any]]:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    return [
        {
            "type": "function",
            "function": {"name": name, "description": "d", "parameters": schema},
        }
        for name in _TOOLS
    ]
