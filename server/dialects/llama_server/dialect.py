"""llama-server's own API, beside OpenAI's."""

from __future__ import annotations

from gguf_serve.server.dialects.dialect import Dialect
from gguf_serve.server.dialects.llama_server import (
    adapters,
    completion,
    embeddings,
    monitoring,
    native,
    streams,
    tools,
)

LLAMA_SERVER = Dialect(
    (
        completion.routes, embeddings.routes, native.routes, monitoring.routes, adapters.routes,
        tools.routes, streams.routes,
    ),
    name="llama-server",
    about="llama-server's own endpoints: prompts as they are, tokens, slots, monitoring.",
    examples={
        "/completion": {"prompt": "The sea is", "n_predict": 50},
        "/infill": {"input_prefix": "def add(a, b):\n    return ", "input_suffix": "\n"},
        "/tokenize": {"content": "The sea", "with_pieces": True},
        "/detokenize": {"tokens": [65, 66]},
        "/apply-template": {"messages": [{"role": "user", "content": "Name a colour."}]},
        "/embeddings": {"content": "a sentence"},
        "/rerank": {"query": "birds", "documents": ["Swallows fly.", "No."]},
        "/lora-adapters": [{"id": 0, "scale": 0.5}],
        "/v1/streams/lookup": {"conversation_ids": ["mine"]},
    },
)  # fmt: skip
