"""llama-server's embeddings, and reranking in the shapes of Jina and TEI."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute

from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import ApiError, invalid, json_response, shown
from gguf_serve.server.interface import Engine
from gguf_serve.server.requests.embeddings import EmbeddingFields, embed, run
from gguf_serve.server.requests.fields import INERT, convert
from gguf_serve.server.requests.prompts import Prompt, check_number, check_total, within_context
from gguf_serve.server.requests.service import Service

# Qwen3's templates have their instruction in a line of its own.
INSTRUCTION = re.compile(r"(<Instruct>: )[^\n]*")


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


class RerankFields(msgspec.Struct, kw_only=True):
    query: str
    instruction: str | None = None  # what makes a document relevant
    documents: list[str | dict[str, Any]] | None = None  # Jina, Cohere
    texts: list[str] | None = None  # TEI
    top_n: int | None = None
    return_text: bool = False
    return_documents: bool = False


class Ranked(Struct, frozen=True):
    texts: Sequence[str]
    scores: list[float]  # of each text
    order: list[int]  # the most relevant first, as many as are wanted
    n_tokens: int


async def ranked(service: Service, http: HttpRequest, fields: RerankFields) -> Ranked:
    """Relevance of each document to the query."""
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
