"""A client's messages as one template wants them.

OpenAI clients send more shapes than any template takes: parts instead of a string, null
content, JSON text for arguments, a developer role, a system message before a model that
knows none. Everything here returns new objects, so that a template can change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gguf_serve.engine.chat.caps import Caps, Message, with_reasoning
from gguf_serve.engine.errors import RequestError


def adapt(messages: Sequence[Mapping[str, Any]], caps: Caps) -> list[Message]:
    """Messages ready for a template with these abilities; RequestError for what none takes."""
    adapted = [_adapt_message(index, message, caps) for index, message in enumerate(messages)]
    return adapted if caps.supports_system_role else _fold_system(adapted)


def _adapt_message(index: int, message: Mapping[str, Any], caps: Caps) -> Message:
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(role, str):
        raise RequestError(f"messages[{index}].role: expected a string, got {role!r}")
    adapted: Message = dict(message)
    if role == "developer":
        adapted["role"] = "system"
    adapted["content"] = _content(index, adapted.get("content"), caps)
    if adapted.get("tool_calls"):
        adapted["tool_calls"] = _calls(index, adapted["tool_calls"], caps)
    else:
        adapted.pop("tool_calls", None)
    return _place_reasoning(adapted, caps)


def _place_reasoning(message: Message, caps: Caps) -> Message:
    """Move ``reasoning_content`` to where the template reads it; leave it if nowhere."""
    reasoning = message.pop("reasoning_content", None)
    if not isinstance(reasoning, str) or not reasoning:
        return message
    return with_reasoning(message, reasoning, caps.reasoning_field or "reasoning_content")


def _content(index: int, content: Any, caps: Caps) -> str | list[dict[str, Any]]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"messages[{index}].content: expected text or parts, got {content!r}")
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise RequestError(f"messages[{index}].content: unsupported part {kind!r}")
    if caps.supports_typed_content:
        return [{"type": "text", "text": part["text"]} for part in content]
    return _lines(content)


def _lines(parts: list[dict[str, Any]]) -> str:
    """Texts on lines of their own; a media marker stands in its line."""
    text = ""
    for previous, part in zip([None, *parts], parts, strict=False):
        is_text = previous is not None and part.get("type") == previous.get("type") == "text"
        text += ("\n" if is_text else "") + part["text"]
    return text


def _calls(index: int, calls: Any, caps: Caps) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise RequestError(f"messages[{index}].tool_calls: expected a list, got {calls!r}")
    return [_call(f"messages[{index}].tool_calls[{i}]", call, caps) for i, call in enumerate(calls)]


def _call(place: str, call: Any, caps: Caps) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError(f"{place}: expected a function with a name, got {call!r}")
    arguments = function.get("arguments", "")
    if caps.supports_object_arguments and isinstance(arguments, str):
        arguments = _parsed(arguments)
    elif not caps.supports_object_arguments and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _parsed(arguments: str) -> Any:
    """The arguments as an object; as they are when a model once wrote them wrongly."""
    try:
        parsed = json.loads(arguments or "{}")
    except ValueError:
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _fold_system(messages: list[Message]) -> list[Message]:
    """Put each system text before the next message's; into a user message if it is last."""
    folded: list[Message] = []
    pending = ""
    for message in messages:
        if message["role"] == "system":
            pending += ("\n" if pending else "") + joined(message)
        elif pending:
            folded.append({**message, "content": f"{pending}\n{joined(message)}"})
            pending = ""
        else:
            folded.append(message)
    return [*folded, {"role": "user", "content": pending}] if pending else folded


def joined(message: Message) -> str:
    """A message's content as one string."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return _lines([part for part in content if "text" in part])
