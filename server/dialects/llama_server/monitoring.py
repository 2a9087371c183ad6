"""What the engine is doing: llama-server's /slots and /metrics, under its names."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Iterable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gguf_serve.engine.stats import WAITS, EngineStats, SlotState
from gguf_serve.server.errors import ApiError, invalid, json_response, not_enabled, shown
from gguf_serve.server.interface import Engine
from gguf_serve.server.requests.answer import ratio
from gguf_serve.server.requests.fields import convert
from gguf_serve.server.requests.parameters import generation_settings
from gguf_serve.server.requests.service import Service

FILE_NAME = re.compile(r"(?!\.)[\w .+-]{1,200}")
MOST_NAME_BYTES = 255  # what file systems take
PREFIX = "llamacpp:"
STARTED = int(time.time())  # of the process


def routes(service: Service) -> list[BaseRoute]:
    return [
        Route("/slots", partial(slots, service)),
        Route("/slots/{id}", partial(slot_action, service), methods=["POST"]),
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
    shown: dict[str, Any] = {
        "id": state.id,
        "n_ctx": state.n_ctx,
        "speculative": False,
        "is_processing": state.is_processing,
    }
    if state.request is None:
        return shown
    next_token = {
        "has_next_token": state.has_next_token,
        "has_new_line": state.has_new_line,
        "n_remain": state.n_remain,
        "n_decoded": state.n_decoded,
    }
    return shown | {
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
    if not service.endpoints.metrics:
        raise not_enabled("metrics endpoint", "--metrics")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatsCollector(service.engine.stats()))
    headers = {"Process-Start-Time-Unix": str(STARTED)}
    return Response(generate_latest(registry), 200, headers, media_type="text/plain; version=0.0.4")


class StatsCollector(Collector):
    """One scrape: the engine's numbers at one moment."""

    def __init__(self, stats: EngineStats) -> None:
        self.stats = stats

    def collect(self) -> Iterable[Metric]:
        for name, value, help in counters(self.stats):
            yield CounterMetricFamily(PREFIX + name, help, value=value)
        for name, value, help in gauges(self.stats):
            yield GaugeMetricFamily(PREFIX + name, help, value=value)
        yield waits(self.stats)
        yield states(self.stats)


def waits(stats: EngineStats) -> Metric:
    """How long requests waited for a slot."""
    help = "Time that requests waited for a slot."
    totals = [f"{most:g}" if most < math.inf else "+Inf" for most in WAITS]
    buckets = list(zip(totals, accumulate(stats.waits), strict=True))
    name = PREFIX + "request_queue_seconds"
    return HistogramMetricFamily(name, help, buckets=buckets, sum_value=stats.wait_seconds)


def states(stats: EngineStats) -> Metric:
    family = GaugeMetricFamily(PREFIX + "requests", "Requests, by state.", labels=["state"])
    family.add_metric(["waiting"], stats.n_deferred - stats.n_paused)
    family.add_metric(["paused"], stats.n_paused)
    family.add_metric(["running"], stats.n_processing)
    return family


def counters(stats: EngineStats) -> Iterable[tuple[str, float, str]]:
    yield "prompt_tokens_total", stats.n_prompt_tokens, "Prompt tokens computed."
    yield "prompt_seconds_total", stats.prompt_seconds, "Time that prompts took."
    yield "tokens_predicted_total", stats.n_generated_tokens, "Tokens generated."
    yield "tokens_predicted_seconds_total", stats.generation_seconds, "Time of generating."
    yield "n_decode_total", stats.n_decodes, "Forwards of the model."
    yield "prompt_tokens_cached_total", stats.n_cached_tokens, "Prompt tokens found in the cache."
    yield "preemptions_total", stats.n_preempted, "Pauses of requests for want of room."


def gauges(stats: EngineStats) -> Iterable[tuple[str, float, str]]:
    prompt = ratio(stats.n_prompt_tokens, stats.prompt_seconds)
    predicted = ratio(stats.n_generated_tokens, stats.generation_seconds)
    yield "prompt_tokens_seconds", prompt, "Prompt tokens per second, on average."
    yield "predicted_tokens_seconds", predicted, "Generated tokens per second, on average."
    yield "requests_processing", stats.n_processing, "Requests being served."
    yield "requests_deferred", stats.n_deferred, "Requests that wait for a slot."
    yield "n_tokens_max", stats.n_tokens_max, "The longest sequence so far, in tokens."
    busy = ratio(stats.n_busy_slots, stats.n_decodes)
    yield "n_busy_slots_per_decode", busy, "Busy slots in a forward, on average."
    yield "kv_cache_usage_ratio", stats.kv_cache_usage_ratio, "Share of the KV cache in use."
    yield "kv_cache_tokens", stats.kv_cache_tokens, "Tokens that the KV cache in use has room for."
