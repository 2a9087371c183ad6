"""The Starlette application: routes of all dialects behind keys, CORS and the loading gate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec import Struct
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from gguf_serve.server import openapi
from gguf_serve.server.dialects.table import DIALECTS, error_response
from gguf_serve.server.errors import (
    LOADING,
    ApiError,
    exception_handlers,
    json_response,
    plain_error,
)
from gguf_serve.server.http.auth import KeyCheck, Keys
from gguf_serve.server.http.client import Client
from gguf_serve.server.http.key_limits import Limited, Limiter
from gguf_serve.server.http.request_log import RequestLog
from gguf_serve.server.http.room import Leases
from gguf_serve.server.idle import Idle, Wake
from gguf_serve.server.page import endpoints as page
from gguf_serve.server.requests.service import Service
from gguf_serve.server.tracing import Traced, Traces


class Gate:
    """Middleware: 503 while the model loads, before any key is looked at; OPTIONS passes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["method"] == "OPTIONS":
            return await Response(status_code=204)(scope, receive, send)
        if self.service.loaded_engine is None and not page.is_file(self.service, scope["path"]):
            raise ApiError("unavailable_error", LOADING)
        if self.service.is_draining and scope["method"] == "POST":
            raise ApiError("unavailable_error", "The server is ending")
        return await self.app(scope, receive, send)


class Prefix:
    """Middleware: all paths begin with --api-prefix, which nothing further in knows of."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if not (path + "/").startswith(self.prefix + "/"):
                missing = ApiError("not_found_error", "File Not Found")
                answer = json_response(plain_error(missing), missing.status)
                return await answer(scope, receive, send)
            scope = {**scope, "path": path.removeprefix(self.prefix) or "/"}
        return await self.app(scope, receive, send)


class Slashes:
    """Middleware: several slashes are as one, and one at the end is none: base URLs are often
    given with one, and clients do not follow every redirection of a POST."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": "/" + "/".join(filter(None, scope["path"].split("/")))}
        return await self.app(scope, receive, send)


LOCALHOST = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"  # an origin, whole


class Cors(Struct, frozen=True):
    """Which pages may use the server; the origin "localhost" is every one on this host."""

    origins: Sequence[str] = ("*",)
    methods: Sequence[str] = ("*",)
    headers: Sequence[str] = ("*",)
    credentials: bool = False

    def middleware(self) -> Middleware:
        return Middleware(
            CORSMiddleware,
            allow_origins=self.origins,
            allow_origin_regex=LOCALHOST if "localhost" in self.origins else None,
            allow_methods=self.methods,
            allow_headers=self.headers,
            allow_credentials=self.credentials,
            # A page of the internet asks so for a server at home; origins decide about that.
            allow_private_network=True,
        )


def create_app(
    service: Service,
    keys: Keys | None = None,
    cors: Cors | None = None,
    prefix: str = "",
    idle: Idle | None = None,
    limiter: Limiter | None = None,
    traces: Traces | None = None,
) -> Starlette:
    groups = [
        openapi.Group(dialect, [route for made in dialect.routes for route in made(service)])
        for dialect in DIALECTS
    ]
    routes = [route for group in groups for route in group.routes]
    handlers = exception_handlers(error_response)
    if service.batches is not None:  # its requests come from nobody's connection
        leased = Leases(Router(routes), room=service.bodies)
        service.batches.app = ExceptionMiddleware(leased, handlers=handlers)
    keys = Keys() if keys is None else keys
    service.traffic.by_key = bool(keys)
    if limiter is not None:
        service.traffic.on_tokens = limiter.spend
    prefixed = [Middleware(Prefix, prefix=prefix)] if prefix else []
    return Starlette(
        routes=[*routes, *openapi.routes(groups), *page.routes(service)],
        middleware=[
            Middleware(RequestLog),
            *([Middleware(Traced, traces=traces, service=service)] if traces is not None else []),
            (cors or Cors()).middleware(),
            Middleware(Slashes),
            *prefixed,
            Middleware(ExceptionMiddleware, handlers=handlers),  # of those below
            Middleware(Gate, service=service),
            Middleware(KeyCheck, keys=keys, is_file=partial(page.is_file, service)),
            Middleware(Client, has_keys=bool(keys)),
            *([Middleware(Limited, limiter=limiter)] if limiter is not None else []),
            *([Middleware(Wake, idle=idle)] if idle is not None else []),
            Middleware(Leases, room=service.bodies),
        ],
        exception_handlers=handlers,
    )
