"""Cohere's API, as far as it is about vectors and scores."""

from __future__ import annotations

from gguf_serve.server.dialects.cohere import endpoints
from gguf_serve.server.dialects.dialect import Dialect
from gguf_serve.server.errors import ApiError


def error_body(error: ApiError) -> dict[str, object]:
    return {"message": error.message}


COHERE = Dialect((endpoints.routes,), ("/v2/embed", "/v2/rerank"), error_body)
