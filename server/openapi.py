"""The OpenAPI document of all endpoints, made of their routes and structs, and a page of it."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import json_response
from gguf_serve.server.version import NAME, VERSION

ERROR = {"description": "an error, in the shape of the endpoint's dialect"}
PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}
code{{background:#8882;padding:.1em .3em}}li{{margin:.2em 0}}</style>
<h1>{title}</h1><p>The same as <a href="openapi.json">OpenAPI</a>.</p>{paths}"""


def routes(described: Sequence[BaseRoute]) -> list[BaseRoute]:
    made = cache(lambda: document(described))  # when it is first asked for
    return [
        Route("/openapi.json", partial(openapi, made)),
        Route("/docs", partial(docs, made)),
    ]


async def openapi(made: Callable[[], dict[str, Any]], http: HttpRequest) -> Response:
    return json_response(made())


async def docs(made: Callable[[], dict[str, Any]], http: HttpRequest) -> Response:
    return HTMLResponse(page(made()))


def document(described: Sequence[BaseRoute]) -> dict[str, Any]:
    posts = [route for route in described if isinstance(route, Post)]
    schemas, components = msgspec.json.schema_components(
        [post.body for post in posts], ref_template="#/components/schemas/{name}"
    )
    bodies = {id(post): schema for post, schema in zip(posts, schemas, strict=True)}
    paths: dict[str, Any] = {}
    for route in described:
        assert isinstance(route, Route)
        path = re.sub(r":\w+}", "}", route.path)
        body = bodies.get(id(route), {"type": "object"})
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = operation(route, path, body)
    return {
        "openapi": "3.1.0",
        "info": {"title": NAME, "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def operation(route: Route, path: str, body: dict[str, Any]) -> dict[str, Any]:
    endpoint = route.endpoint
    function = endpoint.func if isinstance(endpoint, partial) else endpoint
    first_line = (inspect.getdoc(function) or function.__name__.replace("_", " ")).split("\n")[0]
    found: dict[str, Any] = {
        "summary": first_line,
        "responses": {"200": {"description": "the answer"}, "default": ERROR},
    }
    names = re.findall(r"{(\w+)}", path)
    if names:
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if route.methods is not None and "POST" in route.methods:
        is_form = isinstance(route, Post) and route.is_form
        content = {"multipart/form-data" if is_form else "application/json": {"schema": body}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def page(described: dict[str, Any]) -> str:
    schemas = described["components"]["schemas"]
    paths = "".join(
        section(method, path, one, schemas)
        for path, methods in sorted(described["paths"].items())
        for method, one in methods.items()
    )
    return PAGE.format(title=html.escape(f"{NAME} {VERSION}"), paths=paths)


def section(method: str, path: str, one: dict[str, Any], schemas: dict[str, Any]) -> str:
    contents = one.get("requestBody", {}).get("content", {})
    content: dict[str, Any] = next(iter(contents.values()), {})
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    names = schemas.get(name, {}).get("properties", {})
    listed = ", ".join(f"<code>{html.escape(name)}</code>" for name in names)
    title = f"{method.upper()} {html.escape(path)}"
    shown = f"<p>{listed}</p>" if listed else ""
    return f"<h3>{title}</h3><p>{html.escape(one['summary'])}</p>{shown}"
