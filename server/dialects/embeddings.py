"""Embeddings and reranking, in the shapes of OpenAI, llama-server, Jina, TEI and Ollama."""

from __future__ import annotations

import asyncio
import base64
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gguf_serve.engine.completion.pooling import normalized
from gguf_serve.engine.request import Embedded, Pooling, Request
from gguf_serve.server.errors import ApiError, invalid, json_response, shown
from gguf_serve.server.http.stream import raise_if_ended_early
from gguf_serve.server.interface import Engine
from gguf_serve.server.requests.fields import convert
from gguf_serve.server.requests.prompt_objects import read_prompts
from gguf_serve.server.requests.prompts import Prompt, check_number, check_total, within_context
from gguf_serve.server.requests.service import Service

Vectors = list[list[float]]  # of one input: one, or with the pooling "none" one for each token


def routes(service: Service) -> list[BaseRoute]:
    rerankings = ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")
    paths = {
        "/v1/embeddings": openai_embeddings,
        "/embeddings": native_embeddings,
        "/embedding": native_embeddings,
        "/api/embed": ollama_embed,
        "/api/embeddings": ollama_embeddings,
        **dict.fromkeys(rerankings, rerank),
    }
    return [
        Route(path, partial(endpoint, service), methods=["POST"])
        for path, endpoint in paths.items()
    ]


@dataclass(frozen=True, slots=True)
class Result:
    vectors: Vectors
    n_tokens: int


async def run(
    service: Service, http: HttpRequest, prompts: Sequence[Prompt], pooling: Pooling
) -> list[Result]:
    """What the engine makes of each prompt; they wait for slots like other requests."""
    stream = service.event_stream()
    watch = asyncio.create_task(stream.watch(http.receive))
    vectors: list[Vectors] = [[] for _ in prompts]
    try:
        await stream.submit(
            Request(prompt.ids, media=prompt.media, pooling=pooling, max_tokens=0)
            for prompt in prompts
        )
        async for batch in stream:
            for index, event in batch:
                raise_if_ended_early(event)
                if type(event) is Embedded:
                    vectors[index] = [list(vector) for vector in event.vectors]
    finally:
        watch.cancel()
        stream.close()
    if stream.gone:
        raise ClientDisconnect
    return [Result(found, len(prompt.ids)) for prompt, found in zip(prompts, vectors, strict=True)]


class EmbeddingFields(msgspec.Struct, kw_only=True):
    input: Any = None
    content: Any = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    embd_normalize: int | None = None
    truncate: bool = False  # cut what is longer than the context; Ollama does unless told not to


async def embed(
    service: Service, http: HttpRequest, fields: EmbeddingFields, pooling: Pooling
) -> list[Result]:
    name, value = ("input", fields.input) if fields.content is None else ("content", fields.content)
    if value is None:
        raise invalid("Field 'input' is required")
    prompts = await read_prompts(value, service, name, fields.truncate)
    if fields.truncate:
        n_ctx = service.engine.n_ctx
        prompts = [replace(prompt, ids=prompt.ids[:n_ctx]) for prompt in prompts]
    results = await run(service, http, prompts, pooling)
    kind = service.embd_normalize if fields.embd_normalize is None else fields.embd_normalize
    return await asyncio.to_thread(shaped_results, results, kind, fields.dimensions)


def shaped_results(results: Sequence[Result], kind: int, dimensions: int | None) -> list[Result]:
    return [
        Result([shaped(vector, kind, dimensions) for vector in one.vectors], one.n_tokens)
        for one in results
    ]


def shaped(vector: list[float], kind: int, dimensions: int | None) -> list[float]:
    """Normalized; cut to the first dimensions before that, if fewer are asked for."""
    if dimensions is not None:
        if not 1 <= dimensions <= len(vector):
            raise invalid(
                f"Field 'dimensions': Value must be between 1 and {len(vector)}, got {dimensions}"
            )
        vector = vector[:dimensions]
    return normalized(vector, kind)


def one_vector(service: Service) -> Pooling:
    """The pooling of APIs that have one vector for each input."""
    pooling = service.pooling
    return "mean" if pooling == "none" else pooling


async def openai_embeddings(service: Service, http: HttpRequest) -> Response:
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


def encoded(vector: list[float], form: str) -> list[float] | str:
    """Numbers, or the base64 of little-endian float32."""
    if form == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def native_embeddings(service: Service, http: HttpRequest) -> Response:
    fields = convert(await service.read_object(http), EmbeddingFields)
    results = await embed(service, http, fields, service.pooling)
    return json_response(
        [{"index": index, "embedding": result.vectors} for index, result in enumerate(results)]
    )


async def ollama_embed(service: Service, http: HttpRequest) -> Response:
    """Nothing to embed asks to load the model, as in Ollama, and has no vectors."""
    began = time.perf_counter_ns()
    fields = convert({"truncate": True} | await service.read_object(http), EmbeddingFields)
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


async def ollama_embeddings(service: Service, http: HttpRequest) -> Response:
    """Ollama's older endpoint: one text, and the vector as the model gives it."""
    given = convert(await service.read_object(http), OllamaPrompt)
    if not given.prompt:
        return json_response({"embedding": []})
    fields = EmbeddingFields(input=given.prompt, embd_normalize=-1, truncate=True)
    (result,) = await embed(service, http, fields, one_vector(service))
    return json_response({"embedding": result.vectors[0]})


class RerankFields(msgspec.Struct, kw_only=True):
    query: str
    documents: list[str | dict[str, Any]] | None = None  # Jina, Cohere
    texts: list[str] | None = None  # TEI
    top_n: int | None = None
    return_text: bool = False
    return_documents: bool = False


async def rerank(service: Service, http: HttpRequest) -> Response:
    """Relevance of each document to the query; ``texts`` are answered in TEI's shape."""
    if not service.engine.info.ranks:
        raise ApiError(
            "not_supported_error", "This model has no head for ranking: it cannot rerank"
        )
    fields = convert(await service.read_object(http), RerankFields)
    if fields.top_n is not None and fields.top_n < 0:
        raise invalid(f"Field 'top_n': Value must be 0 or more, got {fields.top_n}")
    texts = document_texts(fields)
    n_characters = len(fields.query) + sum(map(len, texts))
    prompts = await service.read_text(n_characters, pairs, fields.query, texts, service.engine)
    results = await run(service, http, prompts, "rank")
    scores = [result.vectors[0][0] for result in results]
    order = sorted(range(len(texts)), key=lambda place: -scores[place])[: fields.top_n]
    name = "relevance_score" if fields.texts is None else "score"
    ranked: list[dict[str, Any]] = [{"index": place, name: scores[place]} for place in order]
    for entry in ranked:
        if fields.texts is not None and fields.return_text:
            entry["text"] = texts[entry["index"]]
        elif fields.texts is None and fields.return_documents:
            entry["document"] = {"text": texts[entry["index"]]}
    if fields.texts is not None:
        return json_response(ranked)
    n_tokens = sum(result.n_tokens for result in results)
    return json_response(
        {
            "model": service.model_name,
            "object": "list",
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
            "results": ranked,
        }
    )


def pairs(query: str, texts: Sequence[str], engine: Engine) -> list[Prompt]:
    with within_context(engine.n_ctx):
        found = engine.tokenizer.encode_pairs(query, texts, engine.n_ctx)
    check_total(sum(map(len, found)), engine.n_ctx, "documents")
    return [Prompt(tuple(ids)) for ids in found]


def document_texts(fields: RerankFields) -> list[str]:
    given: Sequence[str | dict[str, Any]] | None = fields.documents
    if given is None:
        given = fields.texts
    if not given:
        raise invalid("Field 'documents' is required, and must not be empty")
    check_number(given, "texts" if fields.documents is None else "documents")
    return [document_text(place, document) for place, document in enumerate(given)]


def document_text(place: int, document: str | dict[str, Any]) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise invalid(f"Field 'documents[{place}]': expected a text, got {shown(document)}")
    return text
