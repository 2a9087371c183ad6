"""llama-server's embeddings, and reranking in the shapes of Jina and TEI."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute

from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import json_response
from gguf_serve.server.requests.embeddings import EmbeddingFields, RerankFields, embed, ranked
from gguf_serve.server.requests.fields import INERT, convert
from gguf_serve.server.requests.service import Service


def routes(service: Service) -> list[BaseRoute]:
    vectors, scores = partial(embeddings, service), partial(rerank, service)
    rerankings = ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")
    return [
        Post("/embeddings", vectors, EmbeddingFields, also=INERT),
        Post("/embedding", vectors, EmbeddingFields, also=INERT),
        *(Post(path, scores, RerankFields, also=INERT) for path in rerankings),
    ]


async def embeddings(service: Service, http: HttpRequest) -> Response:
    """Turn texts into vectors, in llama-server's form."""
    fields = convert(await service.read_object(http), EmbeddingFields)
    results = await embed(service, http, fields, service.pooling)
    return json_response(
        [{"index": index, "embedding": result.vectors} for index, result in enumerate(results)]
    )


async def rerank(service: Service, http: HttpRequest) -> Response:
    """``texts`` are answered in TEI's shape."""
    fields = convert(await service.read_object(http), RerankFields)
    found = await ranked(service, http, fields)
    name = "relevance_score" if fields.texts is None else "score"
    entries: list[dict[str, Any]] = [
        {"index": place, name: found.scores[place]} for place in found.order
    ]
    for entry in entries:
        if fields.texts is not None and fields.return_text:
            entry["text"] = found.texts[entry["index"]]
        elif fields.texts is None and fields.return_documents:
            entry["document"] = {"text": found.texts[entry["index"]]}
    if fields.texts is not None:
        return json_response(entries)
    return json_response(
        {
            "model": service.model_name,
            "object": "list",
            "usage": {"prompt_tokens": found.n_tokens, "total_tokens": found.n_tokens},
            "results": entries,
        }
    )
