"""OpenAI's batches: requests of a file, which are answered when nobody waits for anything else."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gguf_serve.server.batches.objects import Batch, shown
from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.dialects.openai.files import Seconds, batches
from gguf_serve.server.errors import json_response
from gguf_serve.server.http.client import client
from gguf_serve.server.http.paging import page
from gguf_serve.server.requests.fields import convert
from gguf_serve.server.requests.service import Service

PATH = "/v1/batches"
Name = Annotated[str, msgspec.Meta(max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=512)]
Metadata = Annotated[dict[Name, Text], msgspec.Meta(max_length=16)]


class ExpiresAfter(msgspec.Struct, kw_only=True):
    seconds: Seconds
    anchor: Literal["created_at"] = "created_at"


class NewBatch(msgspec.Struct, kw_only=True):
    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


def routes(service: Service) -> list[BaseRoute]:
    return [
        Post(PATH, partial(create, service), NewBatch),
        Route(PATH, partial(listed, service), methods=["GET"]),
        Route(PATH + "/{id}", partial(batch, service), methods=["GET"]),
        Post(PATH + "/{id}/cancel", partial(cancel, service)),
    ]


async def create(service: Service, http: HttpRequest) -> Response:
    """Run a file of requests when nobody waits for answers."""
    runner = batches(service)
    fields = convert(await service.read_object(http), NewBatch)
    runner.store.find_file(fields.input_file_id, "input_file_id")
    expires = fields.output_expires_after
    made = Batch(
        endpoint=fields.endpoint, input_file_id=fields.input_file_id, model=service.model_name,
        owner=client.get(), metadata=fields.metadata,
        output_seconds=None if expires is None else expires.seconds,
    )  # fmt: skip
    runner.add(made)
    return json_response(shown(made))


async def listed(service: Service, http: HttpRequest) -> Response:
    """Those of the client, newest first."""
    kept = batches(service).store.batches.values()
    mine: list[dict[str, Any]] = [shown(one) for one in kept if one.owner == client.get()]
    return json_response(page(mine, http.query_params, what="batch"))


async def batch(service: Service, http: HttpRequest) -> Response:
    """How far a batch is."""
    return json_response(shown(batches(service).store.find_batch(http.path_params["id"])))


async def cancel(service: Service, http: HttpRequest) -> Response:
    """End a batch; what has been answered stays."""
    runner = batches(service)
    kept = runner.store.find_batch(http.path_params["id"])
    runner.cancel(kept)
    return json_response(shown(kept))
