"""Cohere's API, as far as it is about vectors and scores."""

from __future__ import annotations

from gguf_serve.server.dialects.cohere import endpoints
from gguf_serve.server.dialects.dialect import Dialect
from gguf_serve.server.errors import ApiError


def error_body(error: ApiError) -> dict[str, object]:
    return {"message": error.message}


COHERE = Dialect(
    (endpoints.routes,),
    ("/v2/embed", "/v2/rerank"),
    error_body,
    name="Cohere",
    about="Vectors and orders of documents.",
    examples={
        "/v2/embed": {"model": "any", "input_type": "search_query", "texts": ["a sentence"]},
        "/v2/rerank": {"model": "any", "query": "birds", "documents": ["Swallows fly.", "No."]},
    },
)
