"""GET and POST /tools: what the server runs of --tools and of MCP servers, for who asks for it.

A page of the internet must not: its browser sends a POST anywhere that is no JSON, and to any
address under a name of its own. So the body must be said to be JSON, for which browsers ask first
(CORS), and without keys the server must be called by its address.
"""

from __future__ import annotations

import ipaddress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import ApiError, invalid, json_response, not_enabled, shown
from gguf_serve.server.requests.fields import convert
from gguf_serve.server.requests.service import Service
from gguf_serve.server.tools.tool import Tool
from gguf_serve.server.tools.toolbox import Toolbox


class ToolFields(msgspec.Struct):
    tool: str
    params: dict[str, Any] = {}
    stream: bool = False


def routes(service: Service) -> list[BaseRoute]:
    return [
        Route("/tools", partial(tools, service)),
        Post("/tools", partial(run, service), ToolFields),
    ]


async def tools(service: Service, http: HttpRequest) -> Response:
    """The tools that the server runs (--tools, --mcp-servers-config)."""
    box = allowed(service, http)
    return json_response([listed(tool) for tool in (await box.tools()).values()])


def listed(tool: Tool) -> dict[str, Any]:
    return {
        "display_name": tool.display_name,
        "tool": tool.name,
        "type": tool.kind,
        "permissions": {"write": tool.writes},
        "uses_cwd": tool.kind == "server",
        "definition": tool.function,
    }


async def run(service: Service, http: HttpRequest) -> Response:
    """Run one of the server's tools."""
    box = allowed(service, http)
    content = http.headers.get("content-type", "").partition(";")[0].strip()
    if content != "application/json":
        message = f"POST /tools: expected the content type application/json, got {shown(content)}"
        raise ApiError("unsupported_media_type_error", message)
    fields = convert(await service.read_object(http), ToolFields)
    if fields.stream:
        raise invalid("Field 'stream': tools answer when they have ended")
    tool = (await box.tools()).get(fields.tool)
    if tool is None:
        raise ApiError("not_found_error", f"There is no tool {shown(fields.tool)}")
    return json_response(await tool.run(fields.params, working_folder(http)))


def working_folder(http: HttpRequest) -> str | None:
    if http.headers.get("x-tool-runtime"):
        raise invalid("Header 'x-tool-runtime': tools run where the server does")
    folder = http.headers.get("x-tool-cwd")
    if folder is not None and not Path(folder).is_dir():
        raise invalid(f"Header 'x-tool-cwd': there is no folder {shown(folder)}")
    return folder


def allowed(service: Service, http: HttpRequest) -> Toolbox:
    """The tools, if there are any and the request may be somebody's who means it."""
    if not service.tools:
        raise not_enabled("tools", "--tools or --mcp-servers-config")
    host = http.url.hostname or ""
    if not service.traffic.by_key and not is_address(host):
        message = f"Tools without --api-key: call the server by its address, not as {shown(host)}"
        raise ApiError("authentication_error", message)
    return service.tools


def is_address(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
