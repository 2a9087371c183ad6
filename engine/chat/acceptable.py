"""Conversations that a template refuses, written in a way that it takes.

Templates raise for what their models have not seen in training; clients send it all the same,
and cannot take it back: a call that was cut off, a system message in the middle, two messages of
the user's in a row. What a template takes is rendered as it is; only after a refusal, or where a
system message would be lost, the changes below are made, one after another until it is taken.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from gguf_serve.engine.chat.spelled import spelled_out
from gguf_serve.engine.errors import RequestError

Message = Mapping[str, Any]
Messages = Sequence[Message]
ShownTools = Sequence[Mapping[str, Any]] | None

_SYSTEM = ("system", "developer")
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_ID_LETTERS = string.ascii_letters + string.digits


def accepted(
    messages: Messages, tools: ShownTools, render: Callable[[Messages, ShownTools], str]
) -> tuple[Messages, ShownTools, str]:
    """Messages and tools as the template takes them, and their prompt. RequestError, the
    template's first, if it takes them in no way."""
    first: str | RequestError = ""
    for number, (form, shown) in enumerate(_forms(messages, tools)):
        found = _attempt(render, form, shown)
        if isinstance(found, str) and not _loses_system(form, found):
            return form, shown, found
        if number == 0:
            first = found
    if isinstance(first, RequestError):
        raise first
    return messages, tools, first


def _forms(messages: Messages, tools: ShownTools) -> Iterator[tuple[Messages, ShownTools]]:
    """The conversation as it is, and changed more and more."""
    last = messages, tools
    yield last
    spelled = tools and [spelled_out(tool) for tool in tools]
    for form in accumulate(_CHANGES, lambda form, change: change(form), initial=messages):
        if (form, spelled) != last:
            last = form, spelled
            yield last


def _attempt(
    render: Callable[[Messages, ShownTools], str], messages: Messages, tools: ShownTools
) -> str | RequestError:
    try:
        return render(messages, tools)
    except RequestError as error:
        return error


def _loses_system(messages: Messages, prompt: str) -> bool:
    """Whether a system message that is not at the beginning is left out without a word."""
    later = messages[_n_system(messages) :]
    texts = [_texts(one.get("content")) for one in later if one.get("role") in _SYSTEM]
    return any(parts and parts[0].strip() not in prompt for parts in texts)


def _n_system(messages: Messages) -> int:
    """How many system messages the conversation begins with."""
    places = (place for place, one in enumerate(messages) if one.get("role") not in _SYSTEM)
    return next(places, len(messages))


def _texts(content: Any) -> list[str]:
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    return [part["text"] for part in parts if isinstance(part.get("text"), str)]


def _known_roles(messages: Messages) -> Messages:
    """Results under the name that they had before there were tools."""
    return [{**one, "role": "tool"} if one.get("role") == "function" else one for one in messages]


def _whole_arguments(messages: Messages) -> Messages:
    """What a model has written wrongly, or not to its end, as the value of one argument."""

    def whole(call: Mapping[str, Any]) -> Mapping[str, Any]:
        arguments = call["function"].get("arguments")
        if not isinstance(arguments, str) or not arguments or _is_object(arguments):
            return call
        text = json.dumps({"INVALID_JSON": arguments}, ensure_ascii=False)
        return {**call, "function": {**call["function"], "arguments": text}}

    return _with_calls(messages, whole)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _short_ids(messages: Messages) -> Messages:
    """Ids of nine letters or digits (Mistral's), the same for the same id."""
    renamed = _with_calls(messages, lambda call: {**call, "id": _short_id(call.get("id"))})
    return [
        {**one, "tool_call_id": _short_id(one.get("tool_call_id"))}
        if one.get("role") == "tool"
        else one
        for one in renamed
    ]


def _short_id(id: Any) -> str:
    if isinstance(id, str) and _SHORT_ID.fullmatch(id):
        return id
    digest = hashlib.sha256(str(id).encode("utf-8", "surrogatepass")).digest()
    return "".join(_ID_LETTERS[byte % len(_ID_LETTERS)] for byte in digest[:9])


def _with_calls(
    messages: Messages, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Messages:
    return [
        {**one, "tool_calls": [change(call) for call in one["tool_calls"]]} if _calls(one) else one
        for one in messages
    ]


def _calls(message: Message) -> bool:
    """Whether it has calls; what is not one at all is refused elsewhere."""
    calls = message.get("tool_calls")
    return isinstance(calls, list) and all(
        isinstance(call, Mapping) and isinstance(call.get("function"), Mapping) for call in calls
    )


def _one_thought(messages: Messages) -> Messages:
    """What was said before a call belongs to the thoughts, where there are such (gpt-oss)."""

    def thought(one: Message) -> Message:
        reasoning = one.get("reasoning_content")
        if not (one.get("tool_calls") and reasoning and one.get("content")):
            return one
        thoughts = "\n\n".join([reasoning, *_texts(one["content"])])
        return {**one, "content": "", "reasoning_content": thoughts}

    return [thought(one) for one in messages]


def _system_first(messages: Messages) -> Messages:
    """One system message at the beginning; a later one is the user's, at its place."""
    n = _n_system(messages)
    first = _merged(messages[:n], lambda before, after: True)
    later = [{**one, "role": "user"} if one.get("role") in _SYSTEM else one for one in messages[n:]]
    return [*first, *later]


def _with_user(messages: Messages) -> Messages:
    """Somebody asks: the system message where nobody else does, and with an empty message
    where the assistant speaks first."""
    n = _n_system(messages)
    if n and all(one.get("role") != "user" for one in messages):
        return [*messages[: n - 1], {**messages[n - 1], "role": "user"}, *messages[n:]]
    if n < len(messages) and messages[n].get("role") == "assistant":
        return [*messages[:n], {"role": "user", "content": ""}, *messages[n:]]
    return messages


def _told_calls(messages: Messages) -> Messages:
    """Calls and results as text, where a model knows none, or a result is missing: in the
    syntax in which the calls of such a model are read."""

    def told(one: Message) -> Message:
        if one.get("role") == "tool":
            return {"role": "user", "content": one.get("content")}
        if not one.get("tool_calls") or not _calls(one):
            return one
        calls = (_told(call["function"]) for call in one["tool_calls"])
        text = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
        content = _joined(one.get("content"), text)
        return {k: v for k, v in one.items() if k != "tool_calls"} | {"content": content}

    return [told(one) for one in messages]


def _told(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments")
    if isinstance(arguments, str) and _is_object(arguments):
        arguments = json.loads(arguments)
    call = {"name": function.get("name"), "arguments": arguments or {}}
    return json.dumps(call, ensure_ascii=False)


def _alternating(messages: Messages) -> Messages:
    """Neighbours of one role as one message."""

    def belong(before: Message, after: Message) -> bool:
        plain = not (before.get("tool_calls") or after.get("tool_calls"))
        return (
            before.get("role") == after.get("role")
            and before.get("role") in ("user", "assistant")
            and plain
        )

    return _merged(messages, belong)


def _merged(messages: Messages, belong: Callable[[Message, Message], bool]) -> list[Message]:
    merged: list[Message] = []
    for one in messages:
        if merged and belong(merged[-1], one):
            content = _joined(merged[-1].get("content"), one.get("content"))
            merged[-1] = {**merged[-1], "content": content}
        else:
            merged.append(one)
    return merged


def _joined(before: Any, after: Any) -> Any:
    """Two contents with an empty line between them; parts if one of them has parts."""
    if not before or not after:
        return before or after
    if isinstance(before, str) and isinstance(after, str):
        return f"{before}\n\n{after}"
    return [*_parts(before), {"type": "text", "text": "\n\n"}, *_parts(after)]


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


_CHANGES: tuple[Callable[[Messages], Messages], ...] = (
    _known_roles,
    _whole_arguments,
    _short_ids,
    _one_thought,
    _system_first,
    _with_user,
    _alternating,
    _told_calls,
    _alternating,
)
