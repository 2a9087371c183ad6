"""Ollama's embeddings, of now and before."""

from __future__ import annotations

import time
from functools import partial

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute

from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.dialects.ollama.input import ALSO
from gguf_serve.server.dialects.ollama.keep_alive import keep_alive
from gguf_serve.server.errors import json_response
from gguf_serve.server.requests.embeddings import EmbeddingFields, Result, embed, one_vector
from gguf_serve.server.requests.fields import convert
from gguf_serve.server.requests.service import Service


def routes(service: Service) -> list[BaseRoute]:
    return [
        Post("/api/embed", partial(embed_all, service), EmbedFields, also=ALSO),
        Post("/api/embeddings", partial(embed_one, service), OllamaPrompt, also=ALSO),
    ]


class EmbedFields(EmbeddingFields, kw_only=True):
    keep_alive: str | float | None = None


async def embed_all(service: Service, http: HttpRequest) -> Response:
    """Nothing to embed asks to load the model, as in Ollama, and has no vectors."""
    began = time.perf_counter_ns()
    fields = convert({"truncate": True} | await service.read_object(http), EmbedFields)
    keep_alive(service, fields.keep_alive)
    results: list[Result] = []
    if fields.input not in (None, "", []) or fields.content is not None:
        results = await embed(service, http, fields, one_vector(service))
    return json_response(
        {
            "model": service.model_name,
            "embeddings": [result.vectors[0] for result in results],
            "total_duration": time.perf_counter_ns() - began,
            "load_duration": 0,
            "prompt_eval_count": sum(result.n_tokens for result in results),
        }
    )


class OllamaPrompt(msgspec.Struct):
    prompt: str = ""
    keep_alive: str | float | None = None


async def embed_one(service: Service, http: HttpRequest) -> Response:
    """Ollama's older endpoint: one text, and the vector as the model gives it."""
    given = convert(await service.read_object(http), OllamaPrompt)
    keep_alive(service, given.keep_alive)
    if not given.prompt:
        return json_response({"embedding": []})
    fields = EmbeddingFields(input=given.prompt, embd_normalize=-1, truncate=True)
    (result,) = await embed(service, http, fields, one_vector(service))
    return json_response({"embedding": result.vectors[0]})
