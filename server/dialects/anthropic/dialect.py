"""Anthropic's messages."""

from __future__ import annotations

from gguf_serve.server.dialects.anthropic import endpoints
from gguf_serve.server.dialects.anthropic.errors import error_body
from gguf_serve.server.dialects.dialect import Dialect

ANTHROPIC = Dialect((endpoints.routes,), ("/v1/messages",), error_body)
