"""OpenAI's responses."""

from __future__ import annotations

from gguf_serve.server.dialects.dialect import Dialect
from gguf_serve.server.dialects.responses import endpoints

RESPONSES = Dialect((endpoints.routes,))
