"""LoRA adapters while the server runs: /lora-adapters lists them and sets their scales."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import json_response
from gguf_serve.server.requests.fields import AdapterScale, adapter_scales, convert
from gguf_serve.server.requests.service import Service


def routes(service: Service) -> list[BaseRoute]:
    return [
        Route("/lora-adapters", partial(adapters, service)),
        Post("/lora-adapters", partial(set_adapters, service), list[AdapterScale]),
    ]


async def adapters(service: Service, http: HttpRequest) -> Response:
    """The LoRA adapters that are loaded, with their scales."""
    return json_response(
        [
            {"id": a.id, "path": str(a.path), "scale": a.scale, "task_name": "",
             "prompt_prefix": ""}
            for a in service.engine.adapters()
        ]
    )  # fmt: skip


async def set_adapters(service: Service, http: HttpRequest) -> Response:
    """Adapters that the list does not name are off; requests that run keep what they have."""
    scales = convert(await service.read_list(http), list[AdapterScale])
    service.engine.set_adapters(adapter_scales(scales))
    return json_response({"success": True})
