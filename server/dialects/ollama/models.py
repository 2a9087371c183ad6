"""Ollama's endpoints about models: there is one, and it is loaded."""

from __future__ import annotations

import hashlib
import time
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gguf_serve.server.dialects.dialect import Post, Refused
from gguf_serve.server.errors import ApiError, json_response
from gguf_serve.server.requests.chat import template_caps
from gguf_serve.server.requests.service import Service, timestamp

A_CENTURY = 36500 * 86400.0  # seconds: "for ever"
API_VERSION = "0.13.4"  # of the API that is spoken here: clients look whether it is too old


def routes(service: Service) -> list[BaseRoute]:
    refuse = partial(refused, service)
    return [
        Route("/api/version", partial(version, service), methods=["GET"]),
        Route("/api/tags", partial(tags, service), methods=["GET"]),
        Route("/api/ps", partial(ps, service), methods=["GET"]),
        Post("/api/show", partial(show, service)),
        *(
            Refused(f"/api/{verb}", refuse, methods=["POST"])
            for verb in ("pull", "push", "create", "copy")
        ),
        Refused("/api/delete", refuse, methods=["DELETE"]),
        Refused("/api/blobs/{digest}", refuse, methods=["HEAD", "POST"]),
    ]


async def version(service: Service, http: HttpRequest) -> Response:
    """The version of Ollama's API that is spoken here."""
    return json_response({"version": API_VERSION})


async def tags(service: Service, http: HttpRequest) -> Response:
    """The one model that is served."""
    return json_response({"models": [await entry(service)]})


async def ps(service: Service, http: HttpRequest) -> Response:
    """The model, if it is in memory."""
    if service.is_sleeping:
        return json_response({"models": []})
    info = service.engine.info
    kept = service.keep_alive
    running = {
        "expires_at": timestamp(time.time() + (kept if kept >= 0 else A_CENTURY)),
        "size_vram": info.n_bytes,
        "context_length": service.engine.n_ctx,
    }
    return json_response({"models": [await entry(service) | running]})


async def show(service: Service, http: HttpRequest) -> Response:
    """What is known of the model."""
    await service.read_object(http)
    engine = service.engine
    info = engine.info
    defaults = service.defaults.sampling
    names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n")
    return json_response(
        {
            "license": "",
            "modelfile": f"FROM {info.path}",
            "parameters": "\n".join(f"{name} {getattr(defaults, name)}" for name in names),
            "template": engine.chat_template.source,
            "details": details(service),
            "model_info": {
                "general.architecture": info.architecture,
                "general.basename": info.name,
                "general.parameter_count": info.n_params,
                f"{info.architecture}.context_length": info.n_ctx_train,
                f"{info.architecture}.embedding_length": info.n_embd,
            },
            "capabilities": await capabilities(service),
            "modified_at": timestamp(service.created),
        }
    )


async def refused(service: Service, http: HttpRequest) -> Response:
    """Ollama's management of models: a server here has one model, from its start on."""
    raise ApiError(
        "not_supported_error",
        f"{http.url.path}: this server serves one model file, {service.model_name}, and does "
        "not fetch, make, copy or delete models",
    )


async def entry(service: Service) -> dict[str, Any]:
    """The model in a list."""
    info = service.engine.info
    return {
        "name": service.model_name,
        "model": service.model_name,
        "modified_at": timestamp(service.created),
        "size": info.n_bytes,
        "digest": digest(service),
        "details": details(service),
        "capabilities": await capabilities(service),
    }


def digest(service: Service) -> str:
    """Tells models apart, as clients expect; of what is said of the file, whose bytes would take
    a minute to read."""
    info = service.engine.info
    known = (info.path, info.name, info.architecture, info.n_params, info.n_bytes, info.file_type)
    return hashlib.sha256("\n".join(map(str, known)).encode()).hexdigest()


def details(service: Service) -> dict[str, Any]:
    info = service.engine.info
    return {
        "parent_model": "",
        "format": "gguf",
        "family": info.architecture,
        "families": [info.architecture],
        "parameter_size": info.size_label,
        "quantization_level": info.file_type,
    }


async def capabilities(service: Service) -> list[str]:
    info = service.engine.info
    if info.is_encoder:
        return ["embedding"]
    if service.engine.speech is not None:
        return ["speech"]  # which Ollama has no name for
    caps = await template_caps(service)
    found = ["completion", *["embedding"] * (info.pooling != "none")]
    if service.engine.tokenizer.fim.middle is not None:
        found.append("insert")
    if caps.get("supports_tools"):
        found.append("tools")
    if caps.get("supports_preserve_reasoning") or caps.get("supports_reasoning_effort"):
        found.append("thinking")
    return found + [name for name in ("vision", "audio") if service.modalities[name]]
