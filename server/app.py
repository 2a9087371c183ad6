"""The Starlette application: routes of all dialects behind keys, CORS and the loading gate."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server import anthropic, native, ollama, openai, responses
from server.auth import KeyCheck
from server.errors import EXCEPTION_HANDLERS, ApiError
from server.service import Service

DIALECTS = (openai, responses, anthropic, ollama, native)


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
        if self.service.loaded_engine is None and scope["path"] != "/":
            error = ApiError("unavailable_error", "Loading model")
            return await error.response(scope["path"])(scope, receive, send)
        return await self.app(scope, receive, send)


def create_app(service: Service, api_keys: Iterable[str] = ()) -> Starlette:
    return Starlette(
        routes=[route for dialect in DIALECTS for route in dialect.routes(service)],
        middleware=[
            Middleware(
                CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]
            ),
            Middleware(Gate, service=service),
            Middleware(KeyCheck, keys=tuple(api_keys)),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )
