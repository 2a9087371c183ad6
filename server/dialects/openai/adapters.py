"""vLLM's endpoints that load and unload LoRA adapters, where --lora-runtime allows it."""

from __future__ import annotations

from functools import partial

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute

from gguf_serve.server.adapters import below, check_name, with_name
from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import ApiError, invalid, not_enabled
from gguf_serve.server.requests.fields import convert
from gguf_serve.server.requests.service import Service
from gguf_serve.server.requests.workers import Workers


class LoadBody(msgspec.Struct):
    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadBody(msgspec.Struct):
    lora_name: str
    lora_int_id: int | None = None


def routes(service: Service) -> list[BaseRoute]:
    one_by_one = Workers(1, "adapters")
    return [
        Post("/v1/load_lora_adapter", partial(load, service, one_by_one), LoadBody),
        Post("/v1/unload_lora_adapter", partial(unload, service, one_by_one), UnloadBody),
    ]


async def load(service: Service, one_by_one: Workers, http: HttpRequest) -> Response:
    """Load a LoRA adapter, a GGUF file of the --lora-runtime folder, for requests whose `model`
    is its name."""
    folder = service.endpoints.lora_folder
    body = convert(await service.read_object(http), LoadBody)
    if folder is None:
        raise not_enabled("/v1/load_lora_adapter", "--lora-runtime FOLDER")
    check_name(body.lora_name, [service.model_name, *service.aliases])
    path = below(folder, body.lora_path)

    def act() -> None:
        there = with_name(body.lora_name, service.engine)
        if there is not None and not body.load_inplace:
            raise invalid(
                f"The lora adapter {body.lora_name!r} has already been loaded. If you want to "
                "load the adapter in place, set 'load_inplace' to true."
            )
        service.engine.load_adapter(path, body.lora_name, None if there is None else there.id)

    await one_by_one.run(act)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def unload(service: Service, one_by_one: Workers, http: HttpRequest) -> Response:
    """Unload a LoRA adapter that was loaded at run time; requests that have it keep it."""
    body = convert(await service.read_object(http), UnloadBody)
    if service.endpoints.lora_folder is None:
        raise not_enabled("/v1/unload_lora_adapter", "--lora-runtime FOLDER")

    def act() -> None:
        there = with_name(body.lora_name, service.engine)
        if there is None or body.lora_int_id not in (None, there.id):
            name = f"{body.lora_name!r}" + f" with the id {body.lora_int_id}" * (there is not None)
            raise ApiError("not_found_error", f"The lora adapter {name} cannot be found.")
        service.engine.unload_adapter(there.id)

    await one_by_one.run(act)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
