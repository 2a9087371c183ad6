"""The chat page at ``/``, and what it asks of the server beside the API."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from gguf_serve.server.errors import invalid, json_response
from gguf_serve.server.page import reading
from gguf_serve.server.page.reading import Markdown, Pdf, Unreadable
from gguf_serve.server.requests.fields import convert
from gguf_serve.server.requests.service import Service
from gguf_serve.server.version import NAME, VERSION

if sys.platform != "win32":
    import resource

FILES = Path(__file__).parent / "files"
PUBLIC_FILES = "/page/files/"
MAX_TEXT = 2**19  # characters of Markdown
# Nothing is run, loaded, sent or framed but what this server serves, whatever a model writes.
POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
        "img-src 'self' data: blob:", "media-src data: blob:", "base-uri 'none'",
        "form-action 'none'", "frame-ancestors 'none'",
    )
)  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # asked for again, and answered 304: a page fits its server
}


def routes(service: Service) -> list[BaseRoute]:
    """Of the page, or of the folder that is served in its place; the last ones of all, since a
    folder may have any names."""
    if isinstance(service.page, Path):
        return [Mount("/", app=StaticFiles(directory=service.page, html=True))]
    if not service.page:
        return [Route("/", index)]
    return [
        Route("/", index_or_page),
        Mount(PUBLIC_FILES.rstrip("/"), app=WithHeaders(StaticFiles(directory=FILES))),
        Route("/page/html", partial(html, service), methods=["POST"]),
        Route("/page/text", partial(text, service), methods=["POST"]),
        Route("/page/state", partial(state, service)),
    ]


def is_file(service: Service, path: str) -> bool:
    """Whether a path is that of a page's file, which browsers ask for without a key, and which is
    there while the model loads."""
    if not isinstance(service.page, Path):
        return path == "/" or path.startswith(PUBLIC_FILES)
    folder = service.page.resolve()
    file = (folder / path.lstrip("/")).resolve()
    return file.is_relative_to(folder) and file.exists()


class WithHeaders:
    """Files with the headers that keep a page to itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        await self.app(scope, receive, with_headers)


async def index(http: HttpRequest) -> Response:
    return json_response({"name": NAME, "version": VERSION, "api": "/v1", "health": "/health"})


async def index_or_page(http: HttpRequest) -> Response:
    """The page for browsers, a line of JSON for those who ask for nothing in particular."""
    if not wants_page(http.headers):
        return await index(http)
    asked = http.scope.get("raw_path", b"/").decode("latin-1").partition("?")[0]
    if not asked.endswith("/"):
        # The page's own addresses are relative, so that it works behind any prefix.
        return RedirectResponse(asked.rpartition("/")[2] + "/")
    return FileResponse(FILES / "index.html", headers=HEADERS | {"vary": "accept"})


def wants_page(headers: Headers) -> bool:
    return "text/html" in headers.get("accept", "")


class HtmlFields(msgspec.Struct):
    text: str


async def html(service: Service, http: HttpRequest) -> Response:
    """Markdown as HTML that is safe to take in."""
    fields = convert(await service.read_object(http), HtmlFields)
    if len(fields.text) > MAX_TEXT:
        raise invalid(
            f"Field 'text': {len(fields.text)} characters, at most {MAX_TEXT} are allowed"
        )
    return json_response({"html": await read(Markdown(fields.text))})


async def text(service: Service, http: HttpRequest) -> Response:
    """The text of a PDF, which is the body."""
    return json_response({"text": await read(Pdf(await service.read_body(http)))})


async def read(message: Markdown | Pdf) -> str:
    answer = await asyncio.to_thread(reading.read, message)
    if isinstance(answer, Unreadable):
        raise invalid(f"It cannot be read: {answer.reason}")
    return answer.text


async def state(service: Service, http: HttpRequest) -> Response:
    """What the page's view of the server plots: one sample."""
    engine, stats = service.engine, service.engine.stats()
    slots = engine.slots() if service.endpoints.slots else []
    return json_response(
        {
            "model": service.model_name,
            "architecture": engine.info.architecture,
            "parameters": engine.info.n_params,
            "file_type": engine.info.file_type,
            "device": engine.info.device_name,
            "driver": engine.info.driver,
            "n_ctx": engine.n_ctx,
            "weight_bytes": engine.info.n_bytes,
            "kv_bytes": engine.info.kv_bytes,
            "resident_bytes": resident_bytes(),
            "pages": {
                "size": stats.page_size,
                "all": stats.n_pages,
                "used": stats.n_pages_used,
                "cached": stats.n_pages_cached,
            },
            "running": stats.n_processing,
            "waiting": stats.n_deferred,
            "n_slots": stats.n_slots,
            "totals": {
                "prompt_tokens": stats.n_prompt_tokens,
                "generated_tokens": stats.n_generated_tokens,
                "cached_tokens": stats.n_cached_tokens,
                "decodes": stats.n_decodes,
                "busy_slots": stats.n_busy_slots,
            },
            "slots": [
                {
                    "id": slot.id,
                    "busy": slot.is_processing,
                    "prompt": slot.n_prompt,
                    "processed": slot.n_processed,
                    "cached": slot.n_cached,
                    "generated": slot.n_decoded,
                }
                for slot in slots
            ],
        }
    )


def resident_bytes() -> int:
    """Of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
