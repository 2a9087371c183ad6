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
    )
)  # fmt: skip
