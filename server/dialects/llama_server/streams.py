"""llama-server's endpoints that take up a stream again after its connection broke."""

from __future__ import annotations

from functools import partial

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import invalid, json_response, shown
from gguf_serve.server.requests.fields import convert
from gguf_serve.server.requests.service import Service

DIGITS = 15  # of an offset


class LookupFields(msgspec.Struct):
    conversation_ids: list[str] = []


def routes(service: Service) -> list[BaseRoute]:
    return [
        Route("/v1/stream", partial(follow, service), methods=["GET"]),
        Route("/v1/stream", partial(stop, service), methods=["DELETE"]),
        Post("/v1/streams/lookup", partial(lookup, service), LookupFields),
    ]


async def follow(service: Service, http: HttpRequest) -> Response:
    """A stream that was asked for with X-Conversation-Id, from a byte on."""
    start = http.query_params.get("from") or "0"
    if not start.isdecimal():
        raise invalid(f"Parameter 'from': expected a number of bytes, got {shown(start)}")
    return service.kept_streams.follow(conversation_of(http), int(start[:DIGITS]))


async def stop(service: Service, http: HttpRequest) -> Response:
    """End a stream, if it is there, and forget it."""
    service.kept_streams.stop(conversation_of(http))
    return Response(status_code=204)


async def lookup(service: Service, http: HttpRequest) -> Response:
    """How the streams of these conversations stand."""
    fields = convert(await service.read_object(http), LookupFields)
    return json_response(service.kept_streams.listed(fields.conversation_ids))


def conversation_of(http: HttpRequest) -> str:
    named = http.query_params.get("conv_id")
    if not named:
        raise invalid("Parameter 'conv_id': the conversation is missing")
    return named
