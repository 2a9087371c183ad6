"""Ollama's API."""

from __future__ import annotations

from gguf_serve.server.dialects.dialect import Dialect
from gguf_serve.server.dialects.ollama import embeddings, endpoints, models
from gguf_serve.server.dialects.ollama.endpoints import error_body

OLLAMA = Dialect((endpoints.routes, embeddings.routes, models.routes), ("/api/",), error_body)
