"""Anthropic's messages."""

from __future__ import annotations

from gguf_serve.server.dialects.anthropic import endpoints
from gguf_serve.server.dialects.anthropic.errors import error_body
from gguf_serve.server.dialects.dialect import Dialect

ANTHROPIC = Dialect(
    (endpoints.routes,),
    ("/v1/messages",),
    error_body,
    name="Anthropic's Messages",
    about="For Anthropic's libraries, and Claude Code.",
    examples={
        "/v1/messages": {
            "max_tokens": 50, "messages": [{"role": "user", "content": "Name a colour."}],
        },
        "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "Name a colour."}]},
    },
)  # fmt: skip
