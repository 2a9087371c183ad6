"""What a dialect exports: its routes, with the bodies they take, and the shape of its errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from msgspec import Struct
from starlette.requests import Request as HttpRequest
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gguf_serve.server.errors import ErrorShape, plain_error
from gguf_serve.server.requests.service import Service
from gguf_serve.server.requests.unknown import KNOWN, known_fields


class Dialect(Struct, frozen=True):
    """An API. ``paths`` are the beginnings of paths whose errors have the shape ``error``: one can
    come before a route is found, as for a header that is too long. ``name`` and ``about`` are for
    people, and so are ``examples``: bodies by the paths that they are for."""

    routes: tuple[Callable[[Service], list[BaseRoute]], ...]
    paths: tuple[str, ...] = ()
    error: ErrorShape = plain_error
    name: str = ""
    about: str = ""
    examples: Mapping[str, Any] = MappingProxyType({})


class Refused(Route):
    """An endpoint that the dialect has and this server has not, as it says when it is called."""


class Post(Route):
    """A route of POST; ``body`` is the type of what it is sent as JSON, ``form`` as a form, None
    where it takes none. ``also``: fields beside theirs that are refused, or known to change
    nothing."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[[HttpRequest], Awaitable[ASGIApp]],
        body: Any = dict[str, Any],
        *,
        form: type[Struct] | None = None,
        also: Collection[str] = (),
    ) -> None:
        super().__init__(path, endpoint, methods=["POST"])
        both = {"application/json": body, "multipart/form-data": form}
        self.bodies = {media: kind for media, kind in both.items() if kind is not None}
        self.known = known_fields(self.bodies.values(), also)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[KNOWN] = self.known
        await super().handle(scope, receive, send)
