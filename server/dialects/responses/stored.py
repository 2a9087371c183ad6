"""Responses that are kept: read again, taken up where a stream broke off, cancelled, deleted."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.dialects.responses.background import Background
from gguf_serve.server.dialects.responses.memory import Kept, Memory
from gguf_serve.server.errors import invalid, json_response, shown
from gguf_serve.server.http.framing import NAMED_SSE
from gguf_serve.server.http.paging import page
from gguf_serve.server.http.reply import event_source
from gguf_serve.server.requests.service import Service


def routes(service: Service, memory: Memory) -> list[BaseRoute]:
    return [
        route
        for start in ("/v1/responses", "/responses")
        for route in (
            Route(start + "/{id}", partial(response, service, memory), methods=["GET"]),
            Route(start + "/{id}", partial(delete, memory), methods=["DELETE"]),
            Route(start + "/{id}/input_items", partial(input_items, memory), methods=["GET"]),
            Post(start + "/{id}/cancel", partial(cancel, memory)),
        )
    ]


def found(memory: Memory, http: HttpRequest) -> Kept:
    return memory.find("id", http.path_params["id"])


async def response(service: Service, memory: Memory, http: HttpRequest) -> Response:
    """The response as it stands; with ``stream`` its events behind ``starting_after``."""
    kept, query = found(memory, http), http.query_params
    if query.get("stream") not in ("true", "1"):
        return json_response(kept.run.response if kept.run is not None else kept.response)
    if kept.run is None:
        raise invalid("Parameter 'stream': only responses in the background keep their events")
    after = query.get("starting_after", "-1")
    if after != "-1" and not after.isdecimal():
        raise invalid(f"Parameter 'starting_after': expected a number, got {shown(after)}")
    return followed(service, kept.run, int(after[:9]) + 1)


def followed(service: Service, run: Background, first: int = 0) -> Response:
    """The events of a run as a stream; whoever leaves it does not end the run."""
    return event_source(
        run.objects(first), NAMED_SSE, service.ping_interval, service.timeout, lambda: None
    )


def ended(memory: Memory, kept: Kept) -> None:
    """A run has come to its end: it counts with all that it has written."""
    if kept.run is not None and memory.has(kept):
        kept.response = kept.run.response
        memory.keep(kept)


async def delete(memory: Memory, http: HttpRequest) -> Response:
    """Forget a response, and end it if it is being written."""
    kept = found(memory, http)
    if kept.run is not None:
        kept.run.cancel()
    memory.forget(kept)
    return json_response({"id": kept.id, "object": "response", "deleted": True})


async def input_items(memory: Memory, http: HttpRequest) -> Response:
    """What a response has answered."""
    return json_response(page(found(memory, http).items, http.query_params))


async def cancel(memory: Memory, http: HttpRequest) -> Response:
    """End a response in the background; one that has ended stays as it is."""
    kept = found(memory, http)
    if kept.run is None:
        raise invalid(f"{kept.id} does not run in the background: it ends with its connection")
    kept.run.cancel()
    await kept.run.end()
    return json_response(kept.run.response)
