"""The dialects that are served."""

from __future__ import annotations

from gguf_serve.server.dialects.anthropic.dialect import ANTHROPIC
from gguf_serve.server.dialects.cohere.dialect import COHERE
from gguf_serve.server.dialects.dialect import Dialect
from gguf_serve.server.dialects.llama_server.dialect import LLAMA_SERVER
from gguf_serve.server.dialects.ollama.dialect import OLLAMA
from gguf_serve.server.dialects.openai.dialect import OPENAI
from gguf_serve.server.dialects.responses.dialect import RESPONSES
from gguf_serve.server.errors import shaped_by

DIALECTS: tuple[Dialect, ...] = (OPENAI, RESPONSES, ANTHROPIC, OLLAMA, COHERE, LLAMA_SERVER)

error_response = shaped_by((path, dialect.error) for dialect in DIALECTS for path in dialect.paths)
