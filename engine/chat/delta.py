"""What a chat parser makes of the model's text: pieces of content, reasoning and tool calls."""

from __future__ import annotations

from msgspec import Struct


class ToolCallDelta(Struct, frozen=True):
    """A piece of one call: id and name come once, at its beginning; arguments grow after it.

    The id is "" where the model's syntax has none: whoever answers makes one up.
    ``arguments`` of one index, put together, are JSON text.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class ChatDelta(Struct, frozen=True):
    """What new text added to the answer; reasoning comes before content, content before calls."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


NOTHING = ChatDelta()
