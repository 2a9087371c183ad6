"""Vectors and scores of prompts, which several dialects ask for: from the body to the engine."""

from __future__ import annotations

import asyncio
import base64
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from gguf_serve.engine.completion.pooling import normalized
from gguf_serve.engine.request import Embedded, Pooling, Request, vectors_by
from gguf_serve.server.errors import ApiError, invalid, shown
from gguf_serve.server.http.stream import raise_if_ended_early
from gguf_serve.server.interface import Engine
from gguf_serve.server.requests.fields import n_kept
from gguf_serve.server.requests.prompt_objects import read_prompts
from gguf_serve.server.requests.prompts import Prompt, check_number, check_total, within_context
from gguf_serve.server.requests.service import Service

Vectors = list[list[float]]  # of one input: one, or with the pooling "none" one for each token
# Qwen3's templates have their instruction in a line of its own.
INSTRUCTION = re.compile(r"(<Instruct>: )[^\n]*")


class Result(Struct, frozen=True):
    """What the engine makes of one prompt."""

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
    """Texts or tokens, as ``input`` or ``content``, and what their vectors are to be like."""

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
    """The vectors of each input, normalized as asked for. ApiError if a field is not right."""
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


def encoded(vector: list[float], form: str) -> list[float] | str:
    """Numbers, or the base64 of little-endian float32."""
    if form == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


class RerankFields(msgspec.Struct, kw_only=True):
    """A query, and what is to be ordered by how well it answers that."""

    query: str
    instruction: str | None = None  # what makes a document relevant
    documents: list[str | dict[str, Any]] | None = None  # Jina, Cohere
    texts: list[str] | None = None  # TEI
    top_n: int | None = None
    return_text: bool = False
    return_documents: bool = False


class Ranked(Struct, frozen=True):
    """Texts with their relevance to a query."""

    texts: Sequence[str]
    scores: list[float]  # of each text
    order: list[int]  # the most relevant first, as many as are wanted
    n_tokens: int


async def ranked(service: Service, http: HttpRequest, fields: RerankFields) -> Ranked:
    """Relevance of each document to the query. ApiError if the model has no head for it, or a field
    is not right."""
    if not service.engine.info.ranks:
        raise ApiError(
            "not_supported_error", "This model has no head for ranking: it cannot rerank"
        )
    if fields.top_n is not None and fields.top_n < 0:
        raise invalid(f"Field 'top_n': Value must be 0 or more, got {fields.top_n}")
    texts = document_texts(fields)
    n_characters = len(fields.query) + sum(map(len, texts))
    n_characters += len(fields.instruction or "")
    prompts = await service.read_text(n_characters, rerank_prompts, fields, texts, service.engine)
    results = await run(service, http, prompts, "rank")
    scores = [result.vectors[0][0] for result in results]
    order = sorted(range(len(texts)), key=lambda place: -scores[place])[: fields.top_n]
    return Ranked(texts, scores, order, sum(result.n_tokens for result in results))


def rerank_prompts(fields: RerankFields, texts: Sequence[str], engine: Engine) -> list[Prompt]:
    """The query with each text: in the model's template, if it has one, or as two texts."""
    template, values = engine.info.rerank_template, {"query": fields.query}
    if fields.instruction is not None:
        template = with_instruction(template)
        values["instruction"] = fields.instruction
    with within_context(engine.n_ctx):
        if template:
            found = [
                engine.tokenizer.encode(
                    filled(template, values | {"document": text}),
                    add_special=False, parse_special=True, most=engine.n_ctx,
                )
                for text in texts
            ]  # fmt: skip
        else:
            found = engine.tokenizer.encode_pairs(fields.query, texts, engine.n_ctx)
    check_total(sum(map(len, found)), engine.n_ctx, "documents")
    return [Prompt(tuple(ids)) for ids in found]


def with_instruction(template: str) -> str:
    """The template with a place for an instruction, where its own is."""
    if "{instruction}" in template:
        return template
    found, n = INSTRUCTION.subn(r"\1{instruction}", template)
    if not n:
        raise invalid("Field 'instruction': this model's template has no place for one")
    return found


def filled(template: str, values: Mapping[str, str]) -> str:
    """What stands in braces replaced by its value, none of which is looked at again."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)


def document_texts(fields: RerankFields) -> list[str]:
    """The texts of a body's documents. ApiError for none, too many, or one without a text."""
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
