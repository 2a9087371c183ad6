"""OpenAI's responses."""

from __future__ import annotations

from gguf_serve.server.dialects.dialect import Dialect
from gguf_serve.server.dialects.responses import endpoints

RESPONSES = Dialect(
    (endpoints.routes,),
    name="OpenAI's Responses",
    about="Conversations whose turns may be kept here; for Codex.",
    examples={
        "/v1/responses": {"input": "Name a colour.", "max_output_tokens": 50},
        "/v1/responses/input_tokens": {"input": "Name a colour."},
        "/v1/conversations": {"items": [{"role": "user", "content": "Name a colour."}]},
    },
)
