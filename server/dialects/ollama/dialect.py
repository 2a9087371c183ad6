"""Ollama's API."""

from __future__ import annotations

from gguf_serve.server.dialects.dialect import Dialect
from gguf_serve.server.dialects.ollama import embeddings, endpoints, models
from gguf_serve.server.dialects.ollama.endpoints import error_body

OLLAMA = Dialect(
    (endpoints.routes, embeddings.routes, models.routes),
    ("/api/",),
    error_body,
    name="Ollama",
    about="For Ollama's libraries, and editors that know it. Answers are streams unless `stream` "
    "is false.",
    examples={
        "/api/chat": {
            "stream": False, "messages": [{"role": "user", "content": "Name a colour."}],
            "options": {"num_predict": 50},
        },
        "/api/generate": {
            "stream": False, "prompt": "The sea is", "options": {"num_predict": 50},
        },
        "/api/embed": {"input": ["a sentence"]},
        "/api/show": {"model": "any"},
    },
)  # fmt: skip
