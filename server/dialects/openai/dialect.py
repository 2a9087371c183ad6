"""OpenAI's API but for its responses: chats, embeddings, batches; vLLM's adapters."""

from __future__ import annotations

from gguf_serve.server.dialects.dialect import Dialect
from gguf_serve.server.dialects.openai import (
    adapters,
    batches,
    embeddings,
    endpoints,
    files,
    score,
    transcription,
)

OPENAI = Dialect(
    (
        endpoints.routes,
        embeddings.routes,
        transcription.routes,
        score.routes,
        files.routes,
        batches.routes,
        adapters.routes,
    )
)
