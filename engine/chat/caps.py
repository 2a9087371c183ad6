"""What a chat template can do.

The names are those of llama-server's ``chat_template_caps`` (/props) where it has one.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

Message = dict[str, Any]
# Where a template reads the reasoning of an earlier turn: a field, or a typed content part.
ReasoningField = Literal["reasoning_content", "thinking", "part"]


class Caps(Struct, frozen=True):
    """One flag per ability; all of them hold for the template as it is given."""

    supports_system_role: bool
    supports_string_content: bool
    supports_typed_content: bool
    supports_tools: bool
    supports_tool_calls: bool
    supports_parallel_tool_calls: bool
    supports_object_arguments: bool
    supports_tool_responses: bool
    supports_preserve_reasoning: bool
    supports_reasoning_effort: bool
    reasoning_field: ReasoningField | None

    def as_props(self) -> dict[str, bool]:
        """The flags of llama-server's ``chat_template_caps``, under its names."""
        return {name: getattr(self, name) for name in _PROPS}


_PROPS = (
    "supports_object_arguments",
    "supports_parallel_tool_calls",
    "supports_preserve_reasoning",
    "supports_reasoning_effort",
    "supports_string_content",
    "supports_system_role",
    "supports_tool_calls",
    "supports_tools",
    "supports_typed_content",
)


def with_reasoning(message: Message, text: str, field: ReasoningField) -> Message:
    """The message with its reasoning where the template looks for it."""
    if field != "part":
        return {**message, field: text}
    content = message.get("content") or []
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {**message, "content": [{"type": "thinking", "thinking": text}, *parts]}
