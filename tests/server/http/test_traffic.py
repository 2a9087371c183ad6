"""Histograms of the times that requests take, and what each key asks for."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gguf_serve.engine.request import (
    Delta,
    Event,
    Failed,
    Finished,
    Request,
    Sound,
    Started,
    Timings,
)
from gguf_serve.engine.stats import EngineStats
from gguf_serve.server.dialects.llama_server.metrics import exposition
from gguf_serve.server.http.traffic import Histogram, Traffic, Watch
from gguf_serve.server.requests.service import Endpoints

STATS = EngineStats(
    n_prompt_tokens=100, prompt_seconds=2.0, n_generated_tokens=30, generation_seconds=3.0,
    n_decodes=40, n_busy_slots=60, n_tokens_max=70, n_processing=1, n_deferred=2, n_slots=4,
    n_preempted=5, n_cached_tokens=11, page_size=32, n_pages=10, n_pages_used=5, n_pages_cached=2,
)  # fmt: skip


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_histogram_counts_by_bounds() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    histogram.observe(2.0, 3)
    assert (histogram.counts, histogram.total) == ([2, 4, 1], 18.0)


def watched(*events: tuple[float, Event]) -> Traffic:
    """What is known after events at these seconds of a request that was made at 0."""
    clock = Clock()
    traffic = Traffic(by_key=True, clock=clock)
    watch = Watch(traffic, "k")
    watch.submitted(0)
    for clock.now, event in events:
        watch.take(0, event)
    return traffic


def test_the_times_of_a_request() -> None:
    traffic = watched(
        (1.0, Started(7, 2, 0)), (3.0, Delta("a", (1,))), (3.5, Delta("bc", (2, 3))),
        (4.5, Delta("", (4,))), (4.75, Finished("limit", Timings())),
    )  # fmt: skip
    totals = {
        name: (getattr(traffic, name).total, sum(getattr(traffic, name).counts))
        for name in ("queue", "first", "between", "prompt", "decode", "whole")
    }
    assert totals == {
        "queue": (1.0, 1), "first": (3.0, 1), "between": (1.5, 3), "prompt": (2.0, 1),
        "decode": (1.75, 1), "whole": (4.75, 1),
    }  # fmt: skip
    assert traffic.ended == {"length": 1}
    usage = traffic.keys["k"]
    assert (usage.requests, usage.prompt_tokens, usage.generated_tokens) == (1, 7, 4)


def test_the_times_of_a_sound() -> None:
    """How many tokens it has is known at its end, and so no time between two."""
    timings = Timings(predicted_n=5)
    traffic = watched(
        (1.0, Started(7, 2, 0)), (3.0, Sound(b"ab")), (3.5, Sound(b"cd")), (4.0, Sound(b"e")),
        (4.5, Finished("eos", timings)),
    )  # fmt: skip
    assert (traffic.first.total, sum(traffic.between.counts)) == (3.0, 0)
    assert (traffic.decode.total, traffic.whole.total) == (1.5, 4.5)
    assert traffic.keys["k"].generated_tokens == 5


@pytest.mark.parametrize(
    ("end", "reason"), [(Finished("cancelled", Timings()), "abort"), (Failed("x"), "error")]
)
def test_what_has_not_ended_well_is_no_time(end: Event, reason: str) -> None:
    traffic = watched((1.0, Started(7, 2, 0)), (2.0, end))
    assert (sum(traffic.whole.counts), traffic.ended) == (0, {reason: 1})


def test_only_keys_are_counted_and_not_without_end() -> None:
    assert Traffic().usage("127.0.0.1") is None
    traffic = Traffic(by_key=True)
    assert all(traffic.usage(str(n)) is not None for n in range(1024))
    assert traffic.usage("another") is None
    assert traffic.usage("5") is not None


PAUSE = 0.1


def slow(request: Request, cancelled: threading.Event) -> Iterator[Event]:
    time.sleep(PAUSE)
    yield Started(4, 1, 0)
    time.sleep(PAUSE)
    for letter in "abc":
        yield Delta(letter, (ord(letter),))
        time.sleep(PAUSE)
    yield Finished("eos", Timings(predicted_n=3))


def test_metrics_under_vllms_names(serve: Any, fakes: Any) -> None:
    """Times are between those of the engine and those of the client."""
    engine = fakes.engine(slow)
    engine.stats = lambda: STATS
    url = serve(engine, endpoints=Endpoints(metrics=True), api_keys=["secret"])
    headers = {"authorization": "Bearer secret"}
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    begin = time.perf_counter()
    with httpx.stream("POST", url + "/v1/chat/completions", json=body, headers=headers) as answer:
        times = [
            time.perf_counter() - begin for line in answer.iter_lines() if '"content":"' in line
        ]
    first, seconds = times[0], time.perf_counter() - begin
    text = httpx.get(url + "/metrics", headers=headers).text
    samples = {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("model_name", "tiny.Q8_0.gguf") == "tiny.Q8_0.gguf"
    }

    def total(name: str) -> float:
        assert samples[f"vllm:{name}_count", ""] == samples[f"vllm:{name}_bucket", "+Inf"]
        return samples[f"vllm:{name}_sum", ""]

    assert samples["vllm:inter_token_latency_seconds_count", ""] == 2
    assert 5 * PAUSE <= total("e2e_request_latency_seconds") <= seconds
    assert 2 * PAUSE <= total("time_to_first_token_seconds") <= first
    queue, prefill, decode = (
        total(f"request_{name}_time_seconds") for name in ("queue", "prefill", "decode")
    )
    assert queue >= PAUSE
    assert queue + prefill == pytest.approx(total("time_to_first_token_seconds"))
    assert queue + prefill + decode == pytest.approx(total("e2e_request_latency_seconds"))
    assert samples["vllm:num_requests_running", ""] == 1
    assert samples["vllm:num_requests_waiting", ""] == 2
    assert samples["vllm:kv_cache_usage_perc", ""] == 0.5
    assert samples["vllm:request_success_total", ""] == 1
    assert samples["gguf_serve_key_generated_tokens_total", ""] == 3
    assert "secret" not in text


def test_endpoint_pickers_find_their_facts() -> None:
    """Of the Gateway API inference extension and of llm-d."""
    text = exposition(STATS, traffic=Traffic(), model="m", adapters=["m:sql", "m:poet"]).decode()
    facts = {
        family.name: family.samples[0].labels
        for family in text_string_to_metric_families(text)
        if family.name.endswith("_info")
    }
    pages = {"block_size": str(STATS.page_size), "num_gpu_blocks": str(STATS.n_pages)}
    assert facts == {
        "vllm:cache_config_info": {"model_name": "m", **pages},
        "vllm:lora_requests_info": {
            "model_name": "m", "max_lora": "2", "running_lora_adapters": "m:sql,m:poet",
            "waiting_lora_adapters": "",
        },
    }  # fmt: skip


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    dashboard = json.loads((Path(__file__).parents[3] / "docs/grafana.json").read_text("utf-8"))
    traffic = watched((1.0, Started(7, 2, 0)), (2.0, Finished("eos", Timings())))
    text = exposition(STATS, traffic=traffic, model="m").decode()
    asked = json.dumps(dashboard)
    names = set(re.findall(r"(?:vllm|gguf_serve):\w+", asked))
    assert len(names) > 8
    assert [name for name in names if not re.search(rf"^{name}{{", text, re.MULTILINE)] == []
