"""The body of OpenAI's Responses as the body of a chat completion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from gguf_serve.server.dialects.responses.tools import chat_name, custom_arguments, tool_fields
from gguf_serve.server.dialects.sealed import unsealed
from gguf_serve.server.errors import invalid, shown
from gguf_serve.server.requests.conversation import CHAT_ALSO, Chat

# What asks for a memory of earlier responses, where there is none.
STATEFUL: dict[str, tuple[object, ...]] = {
    "background": (False,),
    "conversation": (),
    "previous_response_id": (),
}
# What its answers have no place for; prompts are kept at OpenAI's.
ELSEWHERE: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "n_cmpl": (1,),
    "prompt": (),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "verbose": (False,),
}
TRANSLATED = frozenset(
    {
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "reasoning",
        "tool_choice",
        "tools",
        "top_logprobs",
        "truncation",
    }
)
# A chat completion's that do nothing here, so that they are told of as fields that nobody knows:
# what stands for them is input, and include with top_logprobs; timings come at the end.
NOT_ASKED = frozenset({"logprobs", "messages", "n_probs", "return_tokens", "timings_per_token"})
# Fields beside those of ResponsesFields: a chat completion's, and what changes nothing here.
ALSO = CHAT_ALSO.union(
    set(Chat.__struct_encode_fields__) - NOT_ASKED,
    STATEFUL,
    ELSEWHERE,
    TRANSLATED,
    ("client_metadata", "max_tool_calls"),
)
TEXT_PARTS = frozenset({"input_text", "output_text", "text", "reasoning_text", "summary_text"})
# Ends of types. Tools that stand among the items, and traces of those that OpenAI's servers run:
# this model has never called them.
NO_MESSAGES = (
    "additional_tools", "_call", "_call_output", "_list_tools", "_approval_request", "compaction",
)  # fmt: skip


class ResponsesFields(msgspec.Struct, kw_only=True):
    """The types of what is translated; all other fields are a chat completion's."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    store: bool | None = None


def chat_body(data: Mapping[str, Any], searches: bool = False) -> dict[str, Any]:
    """Fields that both APIs have keep their names; the rest is translated or left out.
    ``searches``: whether the server searches the web."""
    body = {name: value for name, value in data.items() if name not in TRANSLATED}
    if "max_output_tokens" in data:
        body["max_tokens"] = data["max_output_tokens"]
    effort = data.get("reasoning", {}).get("effort")
    if effort is not None:
        body["reasoning_effort"] = effort
    form = data.get("text", {}).get("format")
    if form is not None:
        body["response_format"] = response_format(form)
    if "message.output_text.logprobs" in (data.get("include") or []):
        body |= {"logprobs": True, "top_logprobs": data.get("top_logprobs", 0)}
    return body | {"messages": messages(data)} | tool_fields(data, searches)


def response_format(form: Any) -> dict[str, Any]:
    """Here the schema lies beside the type, there in an object of its own."""
    if not isinstance(form, dict) or not isinstance(form.get("type"), str):
        raise invalid(f"Field 'text.format': expected an object with a type, got {shown(form)}")
    if form["type"] != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {k: form[k] for k in form if k != "type"}}


def messages(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if "instructions" in data:
        found.append({"role": "system", "content": data["instructions"]})
    given = data["input"]
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    for place, item in enumerate(given):
        add_item(found, f"input[{place}]", item)
    return with_one_system(found)


def with_one_system(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Instructions and the developer's messages at the beginning as one: templates want that."""
    n = next(
        (i for i, one in enumerate(found) if one["role"] not in ("system", "developer")), len(found)
    )
    if n < 2:
        return found
    contents = [one["content"] for one in found[:n]]
    joined = [
        part
        for content in contents
        for part in ([text_part(content)] if isinstance(content, str) else content)
    ]
    return [{"role": "system", "content": joined}, *found[n:]]


def add_item(found: list[dict[str, Any]], name: str, item: dict[str, Any]) -> None:
    """Items of one turn of the assistant (reasoning, text, calls) become one message."""
    kind = item.get("type", "message")
    if kind == "message":
        add_message(found, name, item)
    elif kind == "reasoning":
        turn = assistant(found)
        before = turn.get("reasoning_content", "")
        turn["reasoning_content"] = before + reasoning_text(name, item)
    elif kind == "function_call":
        assistant(found).setdefault("tool_calls", []).append(chat_call(name, item))
    elif kind == "custom_tool_call":
        if not isinstance(item.get("input"), str):
            raise invalid(f"Field '{name}.input': expected a string")
        call = {**item, "arguments": custom_arguments(item["input"])}
        assistant(found).setdefault("tool_calls", []).append(chat_call(name, call))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        if not isinstance(item.get("call_id"), str):
            raise invalid(f"Field '{name}.call_id': expected a string")
        output = parts(f"{name}.output", item.get("output"))
        found.append({"role": "tool", "tool_call_id": item["call_id"], "content": output})
    elif not (isinstance(kind, str) and kind.endswith(NO_MESSAGES)):
        raise invalid(f"Field '{name}.type': {shown(kind)} is not supported by this server")


def add_message(found: list[dict[str, Any]], name: str, item: Mapping[str, Any]) -> None:
    role = item.get("role")
    if not isinstance(role, str):
        missing = "a type or a role" if "type" not in item else "a string as role"
        raise invalid(f"Field '{name}': expected {missing}, got {shown(item)}")
    content = parts(f"{name}.content", item.get("content"))
    if role == "assistant" and found and is_bare(found[-1]):
        found[-1]["content"] = content
    else:
        found.append({"role": role, "content": content})


def assistant(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's turn that is being put together."""
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": ""})
    return found[-1]


def is_bare(message: Mapping[str, Any]) -> bool:
    return (message["role"], message["content"]) == ("assistant", "")


def chat_call(field: str, item: Mapping[str, Any]) -> dict[str, Any]:
    values = [item.get(key) for key in ("call_id", "name", "arguments")]
    if not all(isinstance(value, str) for value in values):
        raise invalid(f"Field '{field}': expected call_id, name and arguments as strings")
    name = chat_name(item.get("namespace"), item["name"])
    function = {"name": name, "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def parts(name: str, content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [text_part(content)]
    if not isinstance(content, list):
        raise invalid(f"Field '{name}': expected a string or an array, got {shown(content)}")
    return [content_part(f"{name}[{place}]", part) for place, part in enumerate(content)]


def content_part(name: str, part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise invalid(f"Field '{name}': expected an object with a type, got {shown(part)}")
    if kind == "input_image":
        if not isinstance(part.get("image_url"), str):
            raise invalid(f"Field '{name}.image_url': expected a URL; files are not kept here")
        return {"type": "image_url", "image_url": {"url": part["image_url"]}, "name": name}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio"), "name": name}
    text = part.get("refusal" if kind == "refusal" else "text")
    if not (kind in TEXT_PARTS or kind == "refusal") or not isinstance(text, str):
        raise invalid(
            f"Field '{name}': input of type {shown(kind)} is not supported by this server"
        )
    return text_part(text)


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def reasoning_text(name: str, item: Mapping[str, Any]) -> str:
    """The reasoning of an earlier answer, in whichever field the client has kept it."""
    for field in ("content", "summary"):
        if item.get(field):
            return "".join(part["text"] for part in parts(f"{name}.{field}", item[field]))
    return unsealed(item.get("encrypted_content"))


def echoed(data: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """What a response repeats of its request, with OpenAI's defaults."""
    defaults: dict[str, Any] = {
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "background": False,
        "conversation": None,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "truncation": "disabled",
        "user": None,
    }
    return ((name, data.get(name, value)) for name, value in defaults.items())
