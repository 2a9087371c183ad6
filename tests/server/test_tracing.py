"""Spans as a collector gets them, by OTLP over HTTP on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra traces has OpenTelemetry")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gguf_serve.server.tracing import Traces, traces_url

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHAT = {"model": "mine", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


class Collector(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans: list[Any] = []
        self.service = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.headers.get("content-encoding", "identity") == "identity"
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.service = values(group.resource.attributes)["service.name"]
            for scope in group.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *given: Any) -> None: ...


def values(attributes: Any) -> dict[str, Any]:
    found = {}
    for one in attributes:
        kind = one.value.WhichOneof("value")
        value = getattr(one.value, kind)
        found[one.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("stream", [False, True])
def test_a_span_for_each_request(
    serve: Any, fakes: Any, collector: Collector, stream: bool
) -> None:
    traces = Traces(collector.url)
    url = serve(fakes.engine(), traces=traces, aliases=("tiny",))
    header = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": stream}, headers=header)
    httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"n": -1})
    httpx.get(f"{url}/health")
    traces.close()
    until = time.monotonic() + 20
    while len(collector.spans) < 2:  # what has not been sent soon comes later
        assert time.monotonic() < until
        time.sleep(0.01)
    good, bad = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    assert collector.service == "gguf-serve"
    assert (good.trace_id.hex(), good.parent_span_id.hex()) == (TRACE, PARENT)
    assert good.name == "chat tiny"
    found = values(good.attributes)
    assert 0 < found.pop("gen_ai.response.time_to_first_chunk") < 60
    assert found == {
        "http.request.method": "POST", "url.path": "/v1/chat/completions",
        "http.response.status_code": 200, "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "gguf-serve", "gen_ai.request.model": "mine",
        "gen_ai.response.model": "tiny", "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 2, "gen_ai.usage.output_tokens": 5,
        "gen_ai.response.finish_reasons": ["length"],
    }  # fmt: skip
    assert good.start_time_unix_nano < good.end_time_unix_nano
    assert bad.name == "POST /v1/chat/completions"
    assert bad.status.code == 2  # an error
    assert "'n'" in bad.status.message
    assert bad.trace_id.hex() != TRACE


def test_a_trace_that_is_not_sampled_has_no_span(
    serve: Any, fakes: Any, collector: Collector
) -> None:
    traces = Traces(collector.url)
    header = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    url = serve(fakes.engine(), traces=traces)
    assert httpx.post(f"{url}/v1/chat/completions", json=CHAT, headers=header).status_code == 200
    traces.close()
    assert collector.spans == []


def test_urls() -> None:
    assert traces_url("http://h:4318") == traces_url("http://h:4318/") == "http://h:4318/v1/traces"
    assert traces_url("http://h/x/v1/traces") == "http://h/x/v1/traces"
