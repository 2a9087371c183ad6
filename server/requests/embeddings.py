"""Vectors and scores of prompts, which several dialects ask for: from the body to the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from gguf_serve.engine.completion.pooling import normalized
from gguf_serve.engine.request import Embedded, Pooling, Request, vectors_by
from gguf_serve.server.errors import invalid
from gguf_serve.server.http.stream import raise_if_ended_early
from gguf_serve.server.requests.fields import n_kept
from gguf_serve.server.requests.prompt_objects import read_prompts
from gguf_serve.server.requests.prompts import Prompt
from gguf_serve.server.requests.service import Service

Vectors = list[list[float]]  # of one input: one, or with the pooling "none" one for each token


class Result(Struct, frozen=True):
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
            Request(prompt.ids, media=prompt.media, wants=vectors_by(pooling)) for prompt in prompts
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
    truncate_prompt_tokens: int | None = None  # keep so many tokens, the last ones


async def embed(
    service: Service, http: HttpRequest, fields: EmbeddingFields, pooling: Pooling
) -> list[Result]:
    name, value = ("input", fields.input) if fields.content is None else ("content", fields.content)
    if value is None:
        raise invalid("Field 'input' is required")
    last = n_kept(fields.truncate_prompt_tokens, 0, service.engine.n_ctx)
    prompts = await read_prompts(value, service, name, fields.truncate, last)
    if fields.truncate:
        n_ctx = service.engine.n_ctx
        prompts = [p if p.media else replace(p, ids=p.ids[:n_ctx]) for p in prompts]
    results = await run(service, http, prompts, pooling)
    kind = service.embd_normalize if fields.embd_normalize is None else fields.embd_normalize
    if pooling == "none":
        kind = -1  # of single tokens they are as the model gives them
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
