"""OpenAI's conversations: lists of items that responses go on."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.dialects.responses.input import messages
from gguf_serve.server.dialects.responses.memory import Kept, Memory, with_ids
from gguf_serve.server.errors import json_response, not_enabled
from gguf_serve.server.http.paging import page
from gguf_serve.server.requests.answer import random_id
from gguf_serve.server.requests.fields import convert
from gguf_serve.server.requests.service import Service

PATH = "/v1/conversations"


def routes(service: Service, memory: Memory) -> list[BaseRoute]:
    return [
        Post(PATH, partial(create, service, memory), NewConversation),
        Route(PATH + "/{id}", partial(read, memory), methods=["GET"]),
        Post(PATH + "/{id}", partial(update, service, memory), Metadata),
        Route(PATH + "/{id}", partial(delete, memory), methods=["DELETE"]),
        Route(PATH + "/{id}/items", partial(items, memory), methods=["GET"]),
        Post(PATH + "/{id}/items", partial(add, service, memory), NewItems),
    ]


class Metadata(msgspec.Struct, kw_only=True):
    metadata: dict[str, Any] | None = None


class NewConversation(Metadata, kw_only=True):
    items: list[dict[str, Any]] | None = None


class NewItems(msgspec.Struct, kw_only=True):
    items: list[dict[str, Any]]


def shown(kept: Kept) -> Response:
    return json_response(
        {
            "id": kept.id,
            "object": "conversation",
            "created_at": kept.created_at,
            "metadata": kept.metadata,
        }
    )


def found(memory: Memory, http: HttpRequest) -> Kept:
    return memory.find("id", http.path_params["id"], is_response=False)


def checked(items: list[dict[str, Any]]) -> tuple[Any, ...]:
    messages({"input": items})  # refuses what no response could go on from
    return with_ids(items)


async def create(service: Service, memory: Memory, http: HttpRequest) -> Response:
    """Begin a conversation that is kept here."""
    if not memory.most:
        raise not_enabled("conversations", "--response-memory")
    fields = convert(await service.read_object(http), NewConversation)
    kept = Kept(random_id("conv_"), checked(fields.items or []), metadata=fields.metadata or {})
    memory.keep(kept)
    return shown(kept)


async def read(memory: Memory, http: HttpRequest) -> Response:
    """What is known of a conversation."""
    return shown(found(memory, http))


async def update(service: Service, memory: Memory, http: HttpRequest) -> Response:
    """Change the metadata of a conversation."""
    fields = convert(await service.read_object(http), Metadata)
    kept = found(memory, http)
    kept.metadata = fields.metadata or {}
    memory.keep(kept)
    return shown(kept)


async def delete(memory: Memory, http: HttpRequest) -> Response:
    """Forget a conversation."""
    kept = found(memory, http)
    memory.forget(kept)
    return json_response({"id": kept.id, "object": "conversation.deleted", "deleted": True})


async def items(memory: Memory, http: HttpRequest) -> Response:
    """The items of a conversation."""
    return json_response(page(found(memory, http).items, http.query_params))


async def add(service: Service, memory: Memory, http: HttpRequest) -> Response:
    """At the end of the conversation; the answer lists what has been added."""
    added = checked(convert(await service.read_object(http), NewItems).items)
    kept = found(memory, http)
    kept.items = (*kept.items, *added)
    memory.keep(kept)
    return json_response(page(added, {"order": "asc", "limit": "100"}))
