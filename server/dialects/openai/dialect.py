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
    speech,
    transcription,
)

OPENAI = Dialect(
    (
        endpoints.routes,
        embeddings.routes,
        transcription.routes,
        speech.routes,
        score.routes,
        files.routes,
        batches.routes,
        adapters.routes,
    ),
    name="OpenAI",
    about="For OpenAI's libraries and all that speak as they do; vLLM's fields and endpoints too.",
    examples={
        "/v1/chat/completions": {
            "max_tokens": 50, "messages": [{"role": "user", "content": "Name a colour."}],
        },
        "/v1/chat/completions/input_tokens": {
            "messages": [{"role": "user", "content": "Name a colour."}],
        },
        "/v1/completions": {"prompt": "The sea is", "max_tokens": 50},
        "/v1/embeddings": {"input": ["a sentence"]},
        "/v1/audio/speech": {"input": "Good morning.", "response_format": "wav"},
        "/v1/score": {"text_1": "birds", "text_2": ["Swallows fly.", "No."]},
        "/v1/load_lora_adapter": {"lora_name": "poems", "lora_path": "poems.gguf"},
        "/v1/unload_lora_adapter": {"lora_name": "poems"},
        "/v1/batches": {
            "input_file_id": "file-...", "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        },
    },
)  # fmt: skip
