"""OpenAI's API but for its responses: chats, completions, embeddings, transcription."""

from __future__ import annotations

from gguf_serve.server.dialects.dialect import Dialect
from gguf_serve.server.dialects.openai import embeddings, endpoints, score, transcription

OPENAI = Dialect((endpoints.routes, embeddings.routes, transcription.routes, score.routes))
