"""Cohere's /v2/embed and /v2/rerank."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute

from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import invalid, json_response
from gguf_serve.server.requests.answer import random_id
from gguf_serve.server.requests.embeddings import (
    EmbeddingFields,
    RerankFields,
    embed,
    encoded,
    one_vector,
    ranked,
)
from gguf_serve.server.requests.fields import convert, refuse
from gguf_serve.server.requests.service import Service

# What a model does with texts of a kind is written into them by whoever asks.
INERT = ("model", "input_type", "priority")
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "images": ([],),
    "inputs": ([],),
    "max_tokens": (),
    "max_tokens_per_doc": (),
}


class EmbedFields(msgspec.Struct, kw_only=True):
    texts: list[str]
    embedding_types: list[Literal["float", "base64"]] | None = None  # None: floats
    output_dimension: int | None = None
    truncate: Literal["NONE", "START", "END"] = "END"


class CohereRerank(msgspec.Struct, kw_only=True):
    query: str
    documents: list[str | dict[str, Any]]
    top_n: int | None = None


def routes(service: Service) -> list[BaseRoute]:
    also = (*INERT, *UNSUPPORTED)
    return [
        Post("/v2/embed", partial(vectors, service), EmbedFields, also=also),
        Post("/v2/rerank", partial(rerank, service), CohereRerank, also=also),
    ]


def head(n_tokens: int) -> dict[str, Any]:
    used = {"input_tokens": n_tokens}
    return {"id": random_id(), "meta": {"api_version": {"version": "2"}, "billed_units": used}}


async def vectors(service: Service, http: HttpRequest) -> Response:
    """Turn texts into vectors, in Cohere's form."""
    data = await service.read_object(http)
    refuse(data, UNSUPPORTED)
    fields = convert(data, EmbedFields)
    if not fields.texts:
        raise invalid("Field 'texts': the list is empty")
    asked = EmbeddingFields(
        input=fields.texts,
        dimensions=fields.output_dimension,
        truncate=fields.truncate == "END",
        truncate_prompt_tokens=-1 if fields.truncate == "START" else None,
    )
    results = await embed(service, http, asked, one_vector(service))
    found = {
        kind: [encoded(result.vectors[0], kind) for result in results]
        for kind in fields.embedding_types or ["float"]
    }
    n_tokens = sum(result.n_tokens for result in results)
    return json_response(head(n_tokens) | {"embeddings": found, "texts": fields.texts})


async def rerank(service: Service, http: HttpRequest) -> Response:
    """Order documents by how well they answer a question, in Cohere's form."""
    data = await service.read_object(http)
    refuse(data, UNSUPPORTED)
    given = convert(data, CohereRerank)
    fields = RerankFields(query=given.query, documents=given.documents, top_n=given.top_n)
    found = await ranked(service, http, fields)
    entries = [{"index": place, "relevance_score": found.scores[place]} for place in found.order]
    return json_response(head(found.n_tokens) | {"results": entries})
