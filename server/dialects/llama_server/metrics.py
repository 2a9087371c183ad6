"""The engine's numbers as Prometheus reads them, under llama-server's names and vLLM's.

Both have colons, which Prometheus keeps for its rules, so that its linter refuses them: beside them
all but what only gateways read is there under names of our own, which it accepts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gguf_serve.engine.stats import WAITS, DiskStats, EngineStats, ReplicaStats
from gguf_serve.server.http.traffic import Histogram, Traffic
from gguf_serve.server.requests.answer import ratio

PREFIX = "llamacpp:"
VLLM = "vllm:"
OWN = "gguf_serve_"
RENAMED = {  # where llama-server's names say something else, or no more than the prefix did
    "n_tokens_max": "longest_sequence_tokens",
    "n_decode": "decodes",
    "prompt_tokens_seconds": "prompt_tokens_per_second",
    "predicted_tokens_seconds": "predicted_tokens_per_second",
    "n_busy_slots_per_decode": "busy_slots_per_decode",
    "request_success": "requests_ended",
}


def exposition(
    stats: EngineStats,
    is_sleeping: bool = False,
    traffic: Traffic | None = None,
    model: str = "",
    adapters: Sequence[str] = (),
) -> bytes:
    """One scrape's text; of a model that sleeps no gauge shows anything. With ``traffic`` what
    vLLM's dashboards and the endpoint pickers of Kubernetes' gateways read, too, labelled with the
    name of the model, and what each key asks for. ``adapters``: by which names requests have them.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatsCollector(stats, is_sleeping))
    if traffic is not None:
        registry.register(TrafficCollector(stats, is_sleeping, traffic, model))
        registry.register(PickerCollector(stats, model, adapters))
    # llama-server's counter of that name has no "_total", which the library adds to all.
    return generate_latest(registry).replace(b"n_tokens_max_total", b"n_tokens_max")


class StatsCollector(Collector):
    """One scrape: the engine's numbers at one moment."""

    def __init__(self, stats: EngineStats, is_sleeping: bool) -> None:
        self.stats = stats
        self.is_sleeping = is_sleeping

    def collect(self) -> Iterable[Metric]:
        for family in self._families():
            yield from (family, plain(family))

    def _families(self) -> Iterable[Metric]:
        for name, value, help in counters(self.stats):
            yield CounterMetricFamily(PREFIX + name, help, value=value)
        for name, value, help in gauges(self.stats):
            yield GaugeMetricFamily(PREFIX + name, help, value=0.0 if self.is_sleeping else value)
        if self.stats.disk is not None:
            yield from disk(self.stats.disk)
        if self.stats.replicas is not None:
            yield from replicas(self.stats.replicas)
        yield waits(self.stats)
        yield states(self.stats)


PLACES = {"disk": "on disk", "ram": "in the host's memory"}


class TrafficCollector(Collector):
    """vLLM's names for the same, with its label; and the counters of keys."""

    def __init__(self, stats: EngineStats, is_sleeping: bool, traffic: Traffic, model: str) -> None:
        self.stats = stats
        self.is_sleeping = is_sleeping
        self.traffic = traffic
        self.model = model

    def collect(self) -> Iterable[Metric]:
        stats, traffic = self.stats, self.traffic
        for name, value, help in (
            ("num_requests_running", stats.n_processing, "Requests being served."),
            ("num_requests_waiting", stats.n_deferred, "Requests that wait."),
            ("kv_cache_usage_perc", stats.kv_cache_usage_ratio, "KV cache in use, from 0 to 1."),
        ):
            yield self._gauge(name, 0.0 if self.is_sleeping else value, help)
        for name, value, help in (
            ("prompt_tokens", stats.n_prompt_tokens, "Prompt tokens computed."),
            ("generation_tokens", stats.n_generated_tokens, "Tokens generated."),
            ("num_preemptions", stats.n_preempted, "Pauses of requests for want of room."),
        ):
            family = CounterMetricFamily(VLLM + name, help, labels=["model_name"])
            family.add_metric([self.model], value)
            yield family
        for name, histogram, help in (
            ("time_to_first_token_seconds", traffic.first, "From a request to its first token."),
            ("inter_token_latency_seconds", traffic.between, "From one token to the next."),
            ("request_queue_time_seconds", traffic.queue, "From a request to its slot."),
            ("request_prefill_time_seconds", traffic.prompt, "From the slot to the first token."),
            ("request_decode_time_seconds", traffic.decode, "From the first token to the end."),
            ("e2e_request_latency_seconds", traffic.whole, "From a request to its end."),
        ):
            times = self._histogram(name, histogram, help)
            yield from (times, plain(times))
        family = CounterMetricFamily(
            VLLM + "request_success", "Requests that have ended.",
            labels=["model_name", "finished_reason"],
        )  # fmt: skip
        for reason, n in sorted(traffic.ended.items()):
            family.add_metric([self.model, reason], n)
        yield from (family, plain(family))
        if traffic.by_key:
            yield from self._keys()

    def _gauge(self, name: str, value: float, help: str) -> Metric:
        family = GaugeMetricFamily(VLLM + name, help, labels=["model_name"])
        family.add_metric([self.model], value)
        return family

    def _histogram(self, name: str, histogram: Histogram, help: str) -> Metric:
        family = HistogramMetricFamily(VLLM + name, help, labels=["model_name"])
        bounds = [*map(str, histogram.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
        family.add_metric([self.model], buckets, sum_value=histogram.total)
        return family

    def _keys(self) -> Iterable[Metric]:
        """A key shows as the beginning of its SHA-256."""
        for name, help in (
            ("requests", "Requests of a key."),
            ("prompt_tokens", "Tokens of its prompts, cached ones among them."),
            ("generated_tokens", "Tokens generated for it."),
        ):
            family = CounterMetricFamily(OWN + "key_" + name, help, labels=["key"])
            for key, usage in self.traffic.keys.items():
                family.add_metric([key], getattr(usage, name))
            yield family


class PickerCollector(Collector):
    """What an endpoint picker of the Gateway API inference extension or of llm-d reads beside the
    gauges of vLLM's dashboards, under vLLM's names: facts, in labels."""

    def __init__(self, stats: EngineStats, model: str, adapters: Sequence[str]) -> None:
        self.stats = stats
        self.model = model
        self.adapters = adapters

    def collect(self) -> Iterable[Metric]:
        stats = self.stats
        pages = {"block_size": stats.page_size, "num_gpu_blocks": stats.n_pages}
        yield self._info("cache_config_info", "The KV cache.", 1.0, pages)
        # All that are loaded are at hand for the next request: so all count as running, and the
        # picker needs no place for one. Its value is a time, of which the picker takes the latest.
        names = ",".join(self.adapters)
        adapters = {
            "max_lora": len(self.adapters),
            "running_lora_adapters": names,
            "waiting_lora_adapters": "",
        }
        yield self._info("lora_requests_info", "LoRA adapters.", time.time(), adapters)

    def _info(self, name: str, help: str, value: float, facts: Mapping[str, object]) -> Metric:
        labels = {"model_name": self.model, **{key: str(fact) for key, fact in facts.items()}}
        family = GaugeMetricFamily(VLLM + name, help, labels=list(labels))
        family.add_metric(list(labels.values()), value)
        return family


def plain(family: Metric) -> Metric:
    """The same under a name of our own, which ends as Prometheus wants it."""
    bare = family.name.partition(":")[2]
    is_largest = bare == "n_tokens_max"  # no counter but in llama-server
    name = OWN + RENAMED.get(bare, bare)
    found = Metric(name, family.documentation, "gauge" if is_largest else family.type)
    found.samples = [
        sample._replace(name=name + ("" if is_largest else sample.name.removeprefix(family.name)))
        for sample in family.samples
    ]
    return found


def disk(stats: DiskStats) -> Iterable[Metric]:
    """The cache in --cache-disk, or of --cache-ram."""
    name, where = f"{PREFIX}cache_{stats.place}_", PLACES[stats.place]
    yield GaugeMetricFamily(name + "bytes", f"Size of the cache {where}.", value=stats.n_bytes)
    yield GaugeMetricFamily(name + "files", "Pages and states in it.", value=stats.n_files)
    for what, value, help in (
        ("hit_tokens", stats.n_hit_tokens, f"Prompt tokens that were {where}."),
        ("load_seconds", stats.load_seconds, "Time that loading them took."),
        ("written", stats.n_written, "Pages and states written by this server."),
        ("evicted", stats.n_evicted, "Those given up for others."),
        ("corrupt", stats.n_corrupt, "Those found damaged, and deleted."),
    ):
        yield CounterMetricFamily(f"{name}{what}_total", help, value=value)


def replicas(stats: ReplicaStats) -> Iterable[Metric]:
    """Of a server whose engines are elsewhere (docs/scaling.md)."""
    yield GaugeMetricFamily(PREFIX + "engines", "Engines that take requests.", stats.n_engines)
    for name, value, help in (
        ("engines_lost", stats.n_lost, "Engines that were gone."),
        ("requests_moved", stats.n_moved, "Requests that went on at another engine."),
    ):
        yield CounterMetricFamily(PREFIX + name, help, value=value)
    routed = CounterMetricFamily(
        PREFIX + "requests_routed", "Requests by engine and by why they went there.",
        labels=["reason", "engine"],
    )  # fmt: skip
    for reason, engine, n in stats.routed:
        routed.add_metric([reason, engine], n)
    yield routed


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
    yield "n_tokens_max", stats.n_tokens_max, "The longest sequence so far, in tokens."
    yield "preemptions_total", stats.n_preempted, "Pauses of requests for want of room."
    yield "spec_decode_num_drafts_total", stats.n_drafts, "Guesses that were verified."
    yield "spec_decode_num_draft_tokens_total", stats.n_drafted, "Tokens of these guesses."
    yield "spec_decode_num_accepted_tokens_total", stats.n_accepted, "Those that were right."


def gauges(stats: EngineStats) -> Iterable[tuple[str, float, str]]:
    prompt = ratio(stats.n_prompt_tokens, stats.prompt_seconds)
    predicted = ratio(stats.n_generated_tokens, stats.generation_seconds)
    yield "prompt_tokens_seconds", prompt, "Prompt tokens per second, on average."
    yield "predicted_tokens_seconds", predicted, "Generated tokens per second, on average."
    yield "requests_processing", stats.n_processing, "Requests being served."
    yield "requests_deferred", stats.n_deferred, "Requests that wait for a slot."
    busy = ratio(stats.n_busy_slots, stats.n_decodes)
    yield "n_busy_slots_per_decode", busy, "Busy slots in a forward, on average."
    yield "kv_cache_usage_ratio", stats.kv_cache_usage_ratio, "Share of the KV cache in use."
    yield "kv_cache_tokens", stats.kv_cache_tokens, "Tokens that the KV cache in use has room for."
