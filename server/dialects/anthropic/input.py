"""The body of Anthropic's Messages as the body of a chat completion."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gguf_serve.server.dialects.anthropic.searching import is_search, result_message
from gguf_serve.server.errors import ApiError, invalid, shown
from gguf_serve.server.requests.fields import SamplingFields, check_stops
from gguf_serve.server.tools.search import FUNCTION

DEFAULT_MAX_TOKENS = 4096  # llama-server's; Anthropic asks for the field
# Claude Code puts a line into the system prompt that changes with every request; read as a
# part of the prompt, it would make every prefix new.
BILLING_STAMP = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n*")
PASSED = (*SamplingFields.__struct_fields__, "stream", "cache_prompt", "cache_salt", "id_slot")
# Beside them, what is of Anthropic's own servers; everything is cached.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "container": (),
    "mcp_servers": ([],),  # that the server asks; its own are --mcp-servers-config's
}
ALSO = frozenset(PASSED).union(UNSUPPORTED) | {
    "cache_control", "context_management", "inference_geo", "metadata", "model", "service_tier",
    "speed",
}  # fmt: skip
EFFORTS = {"xhigh": "high", "max": "high"}  # templates know low, medium and high


class Thinking(msgspec.Struct):
    type: str
    budget_tokens: int | None = None


class ToolChoice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool = False


class OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: dict[str, Any] | None = None


class MessagesFields(msgspec.Struct, kw_only=True):
    messages: list[dict[str, Any]]
    max_tokens: int = DEFAULT_MAX_TOKENS
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    thinking: Thinking | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def chat_body(
    fields: MessagesFields, data: Mapping[str, Any], searches: bool = False
) -> dict[str, Any]:
    """``searches``: whether the server searches the web."""
    body = {name: data[name] for name in PASSED if name in data}
    body["max_tokens"] = fields.max_tokens
    body["messages"] = [*system_messages(fields.system), *conversation(fields.messages)]
    if fields.stop_sequences:
        check_stops("stop_sequences", fields.stop_sequences)
        body["stop"] = fields.stop_sequences
    body |= tool_fields(fields, searches)
    body |= thinking_fields(fields)
    output = fields.output_config or OutputConfig()
    if output.effort is not None:
        body["reasoning_effort"] = EFFORTS.get(output.effort, output.effort)
    if output.format is not None:
        body["response_format"] = response_format("output_config.format", output.format)
    elif fields.output_format is not None:
        body["response_format"] = response_format("output_format", fields.output_format)
    return body


def response_format(name: str, form: Mapping[str, Any]) -> dict[str, Any]:
    if form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise invalid(f"Field '{name}': expected a json_schema with its schema, got {shown(form)}")
    return {"type": "json_schema", "schema": form["schema"]}


def system_messages(system: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    blocks = [{"type": "text", "text": system}] if isinstance(system, str) else system or []
    texts = [text_of("system", place, block) for place, block in enumerate(blocks)]
    parts = [text for text in (BILLING_STAMP.sub("", text) for text in texts) if text]
    return [{"role": "system", "content": text_content(parts)}] if parts else []


def text_content(parts: list[str]) -> str | list[dict[str, Any]]:
    return parts_content([{"type": "text", "text": part} for part in parts])


def text_of(name: str, place: int, block: Mapping[str, Any]) -> str:
    text = block.get("text")
    if block.get("type") != "text" or not isinstance(text, str):
        kind = block.get("type")
        raise invalid(f"Field '{name}[{place}]': expected a block of text, got {shown(kind)}")
    return text


def thinking_fields(fields: MessagesFields) -> dict[str, Any]:
    """Templates that can be told to think or not know ``enable_thinking``."""
    kwargs = dict(fields.chat_template_kwargs or {})
    found: dict[str, Any] = {}
    if fields.thinking is not None:
        if fields.thinking.type in ("enabled", "disabled"):
            kwargs.setdefault("enable_thinking", fields.thinking.type == "enabled")
        if fields.thinking.budget_tokens is not None and fields.thinking.type == "enabled":
            found["thinking_budget_tokens"] = fields.thinking.budget_tokens
    return found | ({"chat_template_kwargs": kwargs} if kwargs else {})


def tool_fields(fields: MessagesFields, searches: bool) -> dict[str, Any]:
    """Tools that Anthropic's own servers or clients define have no schema: they are left out, but
    for a web search."""
    body: dict[str, Any] = {}
    given = fields.tools or []
    tools = [chat_tool(tool) for tool in given if tool.get("type", "custom") == "custom"]
    if searches and any(map(is_search, given)):
        tools.append({"type": "function", "function": FUNCTION})
    if tools:
        body["tools"] = tools
    choice = fields.tool_choice
    if choice is None:
        return body
    if choice.disable_parallel_tool_use:
        body["parallel_tool_calls"] = False
    modes = {"auto": "auto", "any": "required", "none": "none"}
    if choice.type == "tool":
        body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice.type in modes:
        body["tool_choice"] = modes[choice.type]
    else:
        raise invalid(f"Field 'tool_choice.type': {shown(choice.type)} is not known")
    return body


def chat_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {name: tool[name] for name in ("name", "description", "strict") if name in tool}
    function["parameters"] = tool.get("input_schema", {})
    return {"type": "function", "function": function}


def conversation(messages: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for place, message in enumerate(messages):
        name = f"messages[{place}]"
        role, content = message.get("role"), message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if role not in ("user", "assistant", "system"):
            raise invalid(f"Field '{name}.role': expected user or assistant, got {shown(role)}")
        if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
            raise invalid(f"Field '{name}.content': expected a string or a list of blocks")
        if role == "assistant":
            yield from assistant_messages(f"{name}.content", content)
        else:
            yield from user_messages(f"{name}.content", role, content)


def user_messages(name: str, role: str, blocks: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Results of tools are messages of their own, what is between them the user's."""
    parts: list[dict[str, Any]] = []
    for place, block in enumerate(blocks):
        if block.get("type") != "tool_result":
            parts.append(content_part(f"{name}[{place}]", block))
            continue
        if parts:
            yield {"role": role, "content": parts_content(parts)}
            parts = []
        yield tool_message(f"{name}[{place}]", block)
    if parts or not blocks:
        yield {"role": role, "content": parts_content(parts or [{"type": "text", "text": ""}])}


def tool_message(name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    content = block.get("content", "")
    if isinstance(content, list):
        parts = [content_part(f"{name}.content[{i}]", part) for i, part in enumerate(content)]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        content = "\n".join(texts) if len(texts) == len(parts) else parts
    if not isinstance(content, str | list) or not isinstance(block.get("tool_use_id"), str):
        raise invalid(f"Field '{name}': expected tool_use_id, and text or blocks as content")
    return {"role": "tool", "tool_call_id": block["tool_use_id"], "content": content}


def parts_content(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """One text as it is; anything else as parts, which each template joins in its own way."""
    only_text = len(parts) == 1 and parts[0]["type"] == "text"
    return str(parts[0]["text"]) if only_text else parts


def content_part(name: str, block: Any) -> dict[str, Any]:
    """A block of a user's as a part of a message."""
    if isinstance(block, dict) and block.get("type") == "image":
        url = image_url(name, block.get("source"))
        return {"type": "image_url", "image_url": {"url": url}, "name": name}
    return {"type": "text", "text": shown_text(name, block)}


def image_url(name: str, source: Any) -> str:
    kind = source.get("type") if isinstance(source, dict) else None
    if kind == "base64" and isinstance(source.get("data"), str):
        return f"data:{source.get('media_type', 'image/png')};base64,{source['data']}"
    if kind == "url" and isinstance(source.get("url"), str):
        return str(source["url"])
    raise invalid(f"Field '{name}.source': expected an image as base64 or url, got {shown(source)}")


def shown_text(name: str, block: Any) -> str:
    """The text of a block that a text model can read."""
    if not isinstance(block, dict):
        raise invalid(f"Field '{name}': expected a block, got {shown(block)}")
    kind, source = block.get("type"), block.get("source")
    if kind == "text" and isinstance(block.get("text"), str):
        return str(block["text"])
    if kind == "document" and isinstance(source, dict) and source.get("type") == "text":
        return str(source.get("data", ""))
    raise unsupported(name, kind)


def unsupported(name: str, kind: Any) -> ApiError:
    return invalid(f"Field '{name}': input of type {shown(kind)} is not supported by this model")


def assistant_messages(name: str, blocks: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Behind the result of a search, which the server has run, a message of its own begins."""
    begun: list[dict[str, Any]] = []
    for place, block in enumerate(blocks):
        if block.get("type") != "web_search_tool_result":
            begun.append(block)
            continue
        if begun:
            yield assistant_message(name, begun)
            begun = []
        yield result_message(f"{name}[{place}]", block)
    if begun or not blocks:
        yield assistant_message(name, begun)


def assistant_message(name: str, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for place, block in enumerate(blocks):
        kind = block.get("type")
        if kind == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif kind == "thinking" and isinstance(block.get("thinking"), str):
            thoughts.append(block["thinking"])
        elif kind in ("tool_use", "server_tool_use"):
            calls.append(chat_call(f"{name}[{place}]", block))
        elif kind != "redacted_thinking":  # encrypted for another server
            raise unsupported(f"{name}[{place}]", kind)
    message: dict[str, Any] = {"role": "assistant", "content": text_content(texts or [""])}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def chat_call(name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(block.get("name"), str) or not isinstance(block.get("id"), str):
        raise invalid(f"Field '{name}': expected a tool_use with id and name")
    arguments = msgspec.json.encode(block.get("input", {})).decode()
    function = {"name": block["name"], "arguments": arguments}
    return {"id": block["id"], "type": "function", "function": function}
