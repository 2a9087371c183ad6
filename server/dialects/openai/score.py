"""vLLM's /score: how well pairs of texts go together."""

from __future__ import annotations

import time
from functools import partial

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
    one_vector,
    ranked,
)
from gguf_serve.server.requests.fields import INERT, convert
from gguf_serve.server.requests.service import Service


class ScoreFields(msgspec.Struct, kw_only=True):
    text_1: str | list[str]
    text_2: str | list[str]


def routes(service: Service) -> list[BaseRoute]:
    return [
        Post(path, partial(score, service), ScoreFields, also=INERT)
        for path in ("/score", "/v1/score")
    ]


async def score(service: Service, http: HttpRequest) -> Response:
    """By the model's head for ranking, or by the cosine of vectors."""
    fields = convert(await service.read_object(http), ScoreFields)
    firsts, seconds = listed(fields.text_1), listed(fields.text_2)
    if not seconds or len(firsts) not in (1, len(seconds)):
        raise invalid(
            f"Field 'text_2': {len(seconds)} texts; expected as many as 'text_1' has, "
            f"{len(firsts)}, or any number where it has one"
        )
    if service.engine.info.ranks:
        scores, n_tokens = await head_scores(service, http, firsts, seconds)
    else:
        scores, n_tokens = await cosines(service, http, firsts, seconds)
    return json_response(
        {
            "id": random_id("score-"),
            "object": "list",
            "created": int(time.time()),
            "model": service.model_name,
            "data": [
                {"index": index, "object": "score", "score": value}
                for index, value in enumerate(scores)
            ],
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )


async def head_scores(
    service: Service, http: HttpRequest, firsts: list[str], seconds: list[str]
) -> tuple[list[float], int]:
    if len(firsts) > 1:
        raise invalid("Field 'text_1': one text, which is the query, of a model that ranks")
    found = await ranked(service, http, RerankFields(query=firsts[0], documents=[*seconds]))
    return found.scores, found.n_tokens


async def cosines(
    service: Service, http: HttpRequest, firsts: list[str], seconds: list[str]
) -> tuple[list[float], int]:
    asked = EmbeddingFields(input=[*firsts, *seconds], embd_normalize=2)
    results = await embed(service, http, asked, one_vector(service))
    vectors = [result.vectors[0] for result in results]
    left, right = vectors[: len(firsts)], vectors[len(firsts) :]
    left = left if len(left) == len(right) else left * len(right)
    scores = [
        sum(a * b for a, b in zip(*pair, strict=True)) for pair in zip(left, right, strict=True)
    ]
    return scores, sum(result.n_tokens for result in results)


def listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
