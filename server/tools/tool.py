"""A tool as GET /tools lists it and POST /tools runs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from msgspec import Struct

# What a tool has found, in llama-server's shape: ``plain_text_response``, or other fields where it
# has no text, or ``error``. Of MCP servers ``structured_content`` beside it.
Outcome = dict[str, Any]


class Tool(Struct, frozen=True):
    """``run`` takes the arguments, and the folder in which it works (None: the server's). It never
    raises for what a model or a tool server does wrong: the outcome says so."""

    name: str
    display_name: str
    description: str
    parameters: Mapping[str, Any]  # a JSON schema
    run: Callable[[dict[str, Any], str | None], Awaitable[Outcome]]
    kind: Literal["server", "mcp"] = "server"
    writes: bool = False  # whether it changes anything on the host

    @property
    def function(self) -> dict[str, Any]:
        """The tool of a chat completion."""
        described = {"name": self.name, "description": self.description}
        return {"type": "function", "function": described | {"parameters": dict(self.parameters)}}
