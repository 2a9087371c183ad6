"""The OpenAPI document of all endpoints, made of their routes and structs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import msgspec
from msgspec import Struct
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from gguf_serve.server.api_page import page
from gguf_serve.server.dialects.dialect import Dialect, Post, Refused
from gguf_serve.server.errors import json_response
from gguf_serve.server.version import NAME, VERSION

ERROR = {"description": "an error, in the shape of the endpoint's dialect"}
REFUSED = "Not here"
REFUSED_ABOUT = "Endpoints of these APIs that are refused, with a sentence that says why."


class Group(Struct, frozen=True):
    """Endpoints of one dialect, as they are listed."""

    dialect: Dialect
    routes: Sequence[BaseRoute]


def routes(groups: Sequence[Group]) -> list[BaseRoute]:
    made = cache(lambda: document(groups))  # when it is first asked for
    return [
        Route("/openapi.json", partial(openapi, made)),
        Route("/docs", partial(docs, made)),
    ]


async def openapi(made: Callable[[], dict[str, Any]], http: HttpRequest) -> Response:
    return json_response(made())


async def docs(made: Callable[[], dict[str, Any]], http: HttpRequest) -> Response:
    return HTMLResponse(page(made()))


def document(groups: Sequence[Group]) -> dict[str, Any]:
    posts = [route for group in groups for route in group.routes if isinstance(route, Post)]
    schemas, components = msgspec.json.schema_components(
        [kind for post in posts for kind in post.bodies.values()],
        ref_template="#/components/schemas/{name}",
    )
    left = iter(schemas)
    bodies = {id(post): {media: next(left) for media in post.bodies} for post in posts}
    paths: dict[str, Any] = {}
    for group in groups:
        for route in group.routes:
            assert isinstance(route, Route)
            path = re.sub(r":\w+}", "}", route.path)
            taken = bodies.get(id(route), {"application/json": {"type": "object"}})
            tag = REFUSED if isinstance(route, Refused) else group.dialect.name
            for method in sorted((route.methods or set()) - {"HEAD"}):
                one = {"tags": [tag], **operation(route, path, taken, group.dialect.examples)}
                paths.setdefault(path, {})[method.lower()] = one
    tags = [{"name": each.dialect.name, "description": each.dialect.about} for each in groups]
    return {
        "openapi": "3.1.0",
        "info": {"title": NAME, "version": VERSION},
        "tags": [*tags, {"name": REFUSED, "description": REFUSED_ABOUT}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def operation(
    route: Route, path: str, bodies: dict[str, Any], examples: Mapping[str, Any]
) -> dict[str, Any]:
    endpoint = route.endpoint
    function = endpoint.func if isinstance(endpoint, partial) else endpoint
    found: dict[str, Any] = {
        "summary": " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split()),
        "responses": {"200": {"description": "the answer"}, "default": ERROR},
    }
    names = re.findall(r"{(\w+)}", path)
    if names:
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if route.methods is not None and "POST" in route.methods:
        content = {media: {"schema": schema} for media, schema in bodies.items()}
        # A path that is the same without "/v1" has the same example.
        example = examples.get(path, examples.get(f"/v1{path}"))
        if example is not None:
            content["application/json"]["example"] = example
        found["requestBody"] = {"required": True, "content": content}
    return found
