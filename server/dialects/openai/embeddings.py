"""OpenAI's embeddings."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute

from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import json_response
from gguf_serve.server.requests.embeddings import EmbeddingFields, embed, encoded, one_vector
from gguf_serve.server.requests.fields import INERT, convert
from gguf_serve.server.requests.service import Service


def routes(service: Service) -> list[BaseRoute]:
    return [Post("/v1/embeddings", partial(embeddings, service), EmbeddingFields, also=INERT)]


async def embeddings(service: Service, http: HttpRequest) -> Response:
    """Turn texts into vectors."""
    fields = convert(await service.read_object(http), EmbeddingFields)
    results = await embed(service, http, fields, one_vector(service))
    n_tokens = sum(result.n_tokens for result in results)
    return json_response(
        {
            "model": service.model_name,
            "object": "list",
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": encoded(result.vectors[0], fields.encoding_format),
                }
                for index, result in enumerate(results)
            ],
        }
    )
