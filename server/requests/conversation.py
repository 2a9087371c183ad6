"""The one chat request that every dialect is translated to: its fields, and what is checked.

A dialect writes its conversation as the body of a chat completion (messages, tools and
tool_choice in OpenAI's shape); what is checked, rendered and parsed is the same for all.
"""

from __future__ import annotations

from typing import Any, Literal

from gguf_serve.server.errors import invalid, shown
from gguf_serve.server.requests.fields import (
    INERT,
    UNSUPPORTED,
    GenerationFields,
    convert,
    refuse,
)
from gguf_serve.server.requests.media import KINDS, given

CHAT_UNSUPPORTED = UNSUPPORTED | {"echo": (False,), "suffix": ("",)}
CHAT_ALSO = INERT.union(CHAT_UNSUPPORTED)
ReasoningFormat = Literal["none", "auto", "deepseek", "deepseek-legacy"]


class Chat(GenerationFields, kw_only=True):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    reasoning_format: ReasoningFormat | None = None
    reasoning_budget_tokens: int | None = None
    thinking_budget_tokens: int | None = None
    reasoning_budget_message: str | None = None
    reasoning_control: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | Literal["content", "reasoning_content"] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


def read_chat(data: dict[str, Any]) -> Chat:
    """A chat from the body of a chat completion, or from what a dialect has made of its own."""
    refuse(data, CHAT_UNSUPPORTED)
    chat = convert(data, Chat)
    check_messages(chat.messages)
    chat.messages = [with_refusals(message) for message in chat.messages]
    if chat.tools:
        check_tools(chat.tools)
        chat.tools = [without_nulls(tool) for tool in chat.tools]
    return chat


def with_refusals(message: dict[str, Any]) -> dict[str, Any]:
    """Templates have texts alone: an answer that refused is the text with which it did."""
    content = message.get("content")
    if not isinstance(content, list) or all(part["type"] != "refusal" for part in content):
        return message
    texts = [
        {"type": "text", "text": part["refusal"]} if part["type"] == "refusal" else part
        for part in content
    ]
    return message | {"content": texts}


def without_nulls(tool: dict[str, Any]) -> dict[str, Any]:
    """Null means absent here too: some clients write every field of a function."""
    given = {name: value for name, value in tool["function"].items() if value is not None}
    return tool | {"function": given}


def tool_choice(chat: Chat) -> tuple[str, list[dict[str, Any]]]:
    """What the model is to do about tools: auto, none or required, and with which of them.

    A named function is required, and the only one; "allowed_tools" leaves out the others.
    """
    tools = chat.tools or []
    choice = chat.tool_choice
    if choice is None or isinstance(choice, str):
        return named_mode(choice or "auto", tools)
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        listed = allowed.get("tools") if isinstance(allowed, dict) else None
        if not isinstance(listed, list):
            raise invalid(f"Field 'tool_choice': expected tools in an array, got {shown(listed)}")
        names = [function_name(tool) for tool in listed]
        mode = allowed.get("mode", "auto")
    else:
        names, mode = [function_name(choice)], "required"
    known = {tool["function"]["name"] for tool in tools}
    for name in names:
        if name not in known:
            raise invalid(f"Field 'tool_choice': there is no tool {shown(name)}")
    return named_mode(mode, [tool for tool in tools if tool["function"]["name"] in names])


def named_mode(mode: str, tools: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    if mode not in ("auto", "none", "required"):
        raise invalid(f"Field 'tool_choice': expected auto, none or required, got {shown(mode)}")
    if mode == "required" and not tools:
        raise invalid("Field 'tool_choice': required, but there are no tools")
    return mode, tools


def function_name(value: Any) -> Any:
    """The name in ``{"type": "function", "function": {"name"}}``, or flat as in Responses."""
    if isinstance(value, dict) and value.get("type") == "function":
        function = value.get("function", value)
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            return function["name"]
    raise invalid(f"Field 'tool_choice': expected a function with a name, got {shown(value)}")


def continued_field(chat: Chat, prefill: bool) -> bool | Literal["content", "reasoning_content"]:
    """An assistant message at the end is the beginning of the answer."""
    roles = [message["role"] for message in chat.messages]
    continues = chat.continue_final_message
    if continues and roles[-1] != "assistant":
        raise invalid("Field 'continue_final_message': the last message is not the assistant's")
    if continues and chat.add_generation_prompt:
        raise invalid("Field 'continue_final_message': cannot go with 'add_generation_prompt'")
    if continues is None:
        continues = prefill and roles[-1] == "assistant" and not chat.messages[-1].get("tool_calls")
    if continues and roles[-2:] == ["assistant", "assistant"]:
        raise invalid("Cannot have 2 or more assistant messages at the end of the list.")
    return continues


def check_tools(tools: list[dict[str, Any]]) -> None:
    for place, tool in enumerate(tools):
        name = f"tools[{place}]"
        if tool.get("type") != "function":
            kind = tool.get("type")
            raise invalid(f"Field '{name}.type': {shown(kind)} is not supported by this server")
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid(f"Field '{name}.function': expected an object with a name")
        if not isinstance(function.get("parameters", {}), dict | None):
            raise invalid(f"Field '{name}.function.parameters': expected a JSON schema")


def check_messages(messages: list[dict[str, Any]]) -> None:
    if not messages:
        raise invalid("Field 'messages': the list is empty")
    for place, message in enumerate(messages):
        name = f"messages[{place}]"
        if not isinstance(message.get("role"), str):
            raise invalid(
                f"Field '{name}.role': expected a string, got {shown(message.get('role'))}"
            )
        content = message.get("content")
        if isinstance(content, list):
            for number, part in enumerate(content):
                check_part(f"{name}.content[{number}]", part)
        elif content is not None and not isinstance(content, str):
            raise invalid(f"Field '{name}.content': expected a string, an array or null")
        elif content is None and message["role"] != "assistant":
            raise invalid(f"Field '{name}.content' is required")


def check_part(name: str, part: Any) -> None:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise invalid(f"Field '{name}': expected an object with a type, got {shown(part)}")
    kind = part["type"]
    if kind in KINDS:
        given(name, part)
        return
    if kind not in ("text", "refusal"):
        raise invalid(f"Field '{name}': input of type '{kind}' is not supported by this server")
    if not isinstance(part.get(kind), str):
        raise invalid(f"Field '{name}.{kind}': expected a string")
