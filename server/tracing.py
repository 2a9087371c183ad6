"""A span for each request with a body, by OpenTelemetry (--otlp-endpoint, extra ``traces``).

Its parent is that of the request's ``traceparent``. The attributes are those of the conventions for
HTTP and for generative AI; neither prompts nor answers are among them. The library's own variables
(``OTEL_SERVICE_NAME``, ``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_TRACES_SAMPLER``) act too.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gguf_serve.server.account import Account, account
from gguf_serve.server.requests.service import Service, asked_model

if TYPE_CHECKING:
    from opentelemetry.trace import Span

FLUSH = 2.0  # seconds, at the end, for spans that have not been sent
MOST_MODEL = 256  # characters of what a client calls the model
# Ends of paths; what is none of these is not named.
OPERATIONS = {
    "/chat/completions": "chat", "/messages": "chat", "/responses": "chat", "/api/chat": "chat",
    "/completions": "text_completion", "/completion": "text_completion",
    "/api/generate": "text_completion", "/infill": "text_completion",
    "/embeddings": "embeddings", "/embedding": "embeddings", "/api/embed": "embeddings",
}  # fmt: skip
REASONS = {"eos": "stop", "word": "stop", "limit": "length", "cancelled": "cancelled"}


class Traces:
    """Where spans go: in batches, from a thread of the library's."""

    def __init__(self, endpoint: str) -> None:
        """``endpoint``: a collector's URL for HTTP; without a path that of traces is added."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "gguf-serve"}
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=traces_url(endpoint))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("gguf_serve")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, name: str, headers: Headers, attributes: dict[str, Any]) -> Span:
        from opentelemetry.trace import SpanKind

        carrier = {name: headers.get(name, "") for name in ("traceparent", "tracestate")}
        parent = self._propagator.extract(carrier)
        return self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)

    def close(self) -> None:
        """Send what waits, if the collector takes it soon."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(FLUSH)


def traces_url(endpoint: str) -> str:
    return endpoint if urlsplit(endpoint).path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"


class Traced:
    """Middleware, behind RequestLog, whose account of the request it tells."""

    def __init__(self, app: ASGIApp, traces: Traces, service: Service) -> None:
        self.app = app
        self.traces = traces
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        current = account.get()
        if scope["type"] != "http" or scope["method"] != "POST" or current is None:
            return await self.app(scope, receive, send)
        asked = {"http.request.method": "POST", "url.path": scope["path"]}
        span = self.traces.begin(f"POST {scope['path']}", Headers(scope=scope), asked)
        asked_model.set("")
        try:
            return await self.app(scope, receive, send)
        except Exception as error:
            span.record_exception(error)
            raise
        finally:
            self._end(span, scope["path"], current)

    def _end(self, span: Span, path: str, current: Account) -> None:
        from opentelemetry.trace import Status, StatusCode

        operation = next((name for end, name in OPERATIONS.items() if path.endswith(end)), None)
        if operation is not None and current.n_prompt:
            name = self.service.model_name
            span.update_name(f"{operation} {name}")
            span.set_attributes(
                {
                    "gen_ai.operation.name": operation,
                    "gen_ai.provider.name": "gguf-serve",
                    "gen_ai.request.model": (asked_model.get() or name)[:MOST_MODEL],
                    "gen_ai.response.model": name,
                    **usage(current),
                }
            )
        span.set_attribute("http.response.status_code", current.status or 499)
        if current.error or current.status is None or current.status >= 500:
            span.set_status(Status(StatusCode.ERROR, current.error))
        span.end()


def usage(current: Account) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gen_ai.usage.input_tokens": current.n_prompt,
        "gen_ai.usage.cache_read.input_tokens": current.n_cached,
        "gen_ai.usage.output_tokens": current.n_generated,
        "gen_ai.response.finish_reasons": [REASONS[r] for r in current.finish_reasons.values()],
    }
    if current.first_token_ms is not None:
        found["gen_ai.response.time_to_first_chunk"] = current.first_token_ms / 1e3
    return found
