"""What the engine is doing: llama-server's /slots and /metrics, under its names."""

from __future__ import annotations

import asyncio
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gguf_serve.engine.stats import SlotState
from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import ApiError, invalid, json_response, not_enabled, shown
from gguf_serve.server.interface import Engine
from gguf_serve.server.requests.fields import convert
from gguf_serve.server.requests.parameters import generation_settings
from gguf_serve.server.requests.service import Service

FILE_NAME = re.compile(r"(?!\.)[\w .+-]{1,200}")
MOST_NAME_BYTES = 255  # what file systems take
STARTED = int(time.time())  # of the process


def routes(service: Service) -> list[BaseRoute]:
    return [
        Route("/slots", partial(slots, service)),
        Post("/slots/{id}", partial(slot_action, service)),
        Route("/metrics", partial(metrics, service)),
    ]


async def slots(service: Service, http: HttpRequest) -> Response:
    """The state of every slot; with ``fail_on_no_slot`` 503 if none is free."""
    if not service.endpoints.slots:
        raise not_enabled("slots endpoint", "--slots")
    states = service.engine.slots()
    wants_one = http.query_params.get("fail_on_no_slot", "") not in ("", "0")
    if wants_one and all(state.is_processing for state in states):
        raise ApiError("unavailable_error", "no slot available")
    return json_response([slot(state, service.engine) for state in states])


def slot(state: SlotState, engine: Engine) -> dict[str, Any]:
    """A slot that has served nothing yet has no parameters to show."""
    described: dict[str, Any] = {
        "id": state.id,
        "n_ctx": state.n_ctx,
        "speculative": state.guesses,
        "is_processing": state.is_processing,
    }
    if state.request is None:
        return described
    next_token = {
        "has_next_token": state.has_next_token,
        "has_new_line": state.has_new_line,
        "n_remain": state.n_remain,
        "n_decoded": state.n_decoded,
    }
    return described | {
        "id_task": state.id_task,
        "n_prompt_tokens": state.n_prompt,
        "n_prompt_tokens_processed": state.n_processed,
        "n_prompt_tokens_cache": state.n_cached,
        "params": generation_settings(state.request, engine),
        "next_token": [next_token],
    }


class SlotFields(msgspec.Struct):
    filename: str


async def slot_action(service: Service, http: HttpRequest) -> Response:
    """Save what a slot has left in the cache, put it back, or erase it: ``?action=``."""
    folder = service.endpoints.slot_save_path
    if folder is None:
        raise not_enabled("slots actions", "--slot-save-path")
    id, action = http.path_params["id"], http.query_params.get("action", "")
    if not id.isdecimal():
        raise invalid(f"Invalid slot ID: {shown(id)}")
    if action == "erase":
        erased = await asyncio.wrap_future(service.engine.erase_slot(int(id[:9])))
        return json_response({"id_slot": int(id), "n_erased": erased})
    if action not in ("save", "restore"):
        raise invalid(f"Invalid action: {shown(action)}; known are save, restore and erase")
    name = convert(await service.read_object(http), SlotFields).filename
    if not FILE_NAME.fullmatch(name):
        raise invalid(f"Field 'filename': {shown(name)} is not a plain name")
    if (size := len(name.encode())) > MOST_NAME_BYTES:
        raise invalid(
            f"Field 'filename': {size} bytes in UTF-8, at most {MOST_NAME_BYTES} are allowed"
        )
    act = service.engine.save_slot if action == "save" else service.engine.restore_slot
    file = await asyncio.wrap_future(act(int(id[:9]), Path(folder) / name))
    n_tokens, n_bytes = ("n_saved", "n_written") if action == "save" else ("n_restored", "n_read")
    return json_response(
        {
            "id_slot": int(id),
            "filename": name,
            n_tokens: file.n_tokens,
            n_bytes: file.n_bytes,
            "timings": {f"{action}_ms": file.seconds * 1e3},
        }
    )


async def metrics(service: Service, http: HttpRequest) -> Response:
    """Counters, gauges and histograms for Prometheus (--metrics)."""
    if not service.endpoints.metrics:
        raise not_enabled("metrics endpoint", "--metrics")
    # Its library takes 20 ms to import, which a start need not wait for.
    from gguf_serve.server.dialects.llama_server.metrics import exposition

    headers = {"Process-Start-Time-Unix": str(STARTED)}
    stats = service.engine.stats()
    model = service.model_name
    adapters = [f"{model}:{adapter.name}" for adapter in service.engine.adapters()]
    text = exposition(stats, service.is_sleeping, service.traffic, model, adapters)
    return Response(text, 200, headers, media_type="text/plain; version=0.0.4")
