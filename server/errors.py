"""Errors as clients see them; most dialects have ``{"error": {"code", "message", "type", ...}}``.

The types and their status codes are llama-server's; ``code`` repeats the HTTP status.
Paths tell which dialect a client speaks: an error can come before anything has read its body.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from gguf_serve.engine.errors import (
    ContextOverflowError,
    EngineError,
    EngineStoppedError,
    RequestError,
)
from gguf_serve.server.account import note_error

log = logging.getLogger(__name__)

STATUS = {
    "invalid_request_error": 400,
    "exceed_context_size_error": 400,
    "authentication_error": 401,
    "not_found_error": 404,
    "method_not_allowed_error": 405,
    "timeout_error": 408,
    "payload_too_large_error": 413,
    "uri_too_long_error": 414,
    "unsupported_media_type_error": 415,
    "rate_limit_error": 429,
    "header_too_large_error": 431,
    "server_error": 500,
    "not_supported_error": 501,
    "unavailable_error": 503,
}
LOADING = "Loading model"  # until it can be asked; llama-server's words
MAX_MESSAGE = 1000  # characters; some repeat what the client has sent
TYPE_OF_STATUS = {status: kind for kind, status in reversed(STATUS.items())}


class ApiError(Exception):
    """A refusal or a fault as the client sees it; ``type`` is a key of STATUS."""

    def __init__(
        self,
        type: str,
        message: str,
        details: Mapping[str, int] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if len(message) > MAX_MESSAGE:
            message = f"{message[:MAX_MESSAGE]} [...]"
        super().__init__(message)
        self.type = type
        self.status = STATUS[type]
        self.message = message
        self.details = dict(details or {})
        self.headers = headers


ErrorShape = Callable[[ApiError], dict[str, object]]  # the JSON that a dialect makes of an error
ErrorResponse = Callable[[ApiError, str], Response]  # what a client of a path is sent


def plain_error(error: ApiError) -> dict[str, object]:
    """llama-server's shape, and OpenAI's."""
    shown = {"code": error.status, "message": error.message, "type": error.type}
    return {"error": shown | error.details}


def shaped_by(shapes: Iterable[tuple[str, ErrorShape]]) -> ErrorResponse:
    """Responses in the first shape whose path a request's begins with, else the plain one."""
    known = tuple(shapes)

    def respond(error: ApiError, path: str) -> Response:
        shape = next((shape for start, shape in known if path.startswith(start)), plain_error)
        return json_response(shape(error), error.status, error.headers)

    return respond


def shown(value: object, limit: int = 80) -> str:
    """The beginning of what a client has given, for a message; as long as it may be, no more than
    that is looked at."""
    return repr(pruned(value, [limit]))[:limit]


def pruned(value: object, left: list[int]) -> object:
    """At most so many parts of a value, each at least a character of what is shown."""
    limit = left[0]
    left[0] -= 1
    if isinstance(value, str):
        return value[:limit]
    if isinstance(value, list):
        return [pruned(item, left) for item in value[:limit] if left[0] > 0]
    if isinstance(value, dict):
        items = islice(value.items(), limit)
        return {pruned(name, left): pruned(item, left) for name, item in items if left[0] > 0}
    return value


def invalid(message: str) -> ApiError:
    return ApiError("invalid_request_error", message)


def not_enabled(endpoint: str, option: str) -> ApiError:
    message = f"This server does not support {endpoint}. Start it with `{option}`"
    return ApiError("not_supported_error", message)


def from_engine(error: EngineError) -> ApiError:
    """The engine's refusals are the client's to mend, its end is the server's."""
    if isinstance(error, ContextOverflowError):
        numbers = {"n_prompt_tokens": error.n_prompt_tokens, "n_ctx": error.n_ctx}
        return ApiError("exceed_context_size_error", str(error), numbers)
    if isinstance(error, RequestError):
        return invalid(str(error))
    if isinstance(error, EngineStoppedError):
        return ApiError("unavailable_error", str(error))
    return ApiError("server_error", str(error))


def json_response(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    body = msgspec.json.encode(content)
    return Response(body, status, headers, media_type="application/json; charset=utf-8")


def exception_handlers(respond: ErrorResponse) -> dict[Any, Callable[..., Response]]:
    """What becomes of exceptions, by their classes."""

    def on_api_error(request: HttpRequest, error: ApiError) -> Response:
        note_error(error.message)
        return respond(error, request.url.path)

    def on_engine_error(request: HttpRequest, error: EngineError) -> Response:
        return on_api_error(request, from_engine(error))

    def on_http_exception(request: HttpRequest, error: HTTPException) -> Response:
        return on_api_error(request, from_http(request, error))

    def on_client_gone(request: HttpRequest, error: ClientDisconnect) -> Response:
        """The client left while it was sending its body; nobody reads this."""
        return Response(status_code=400)

    def on_exception(request: HttpRequest, error: Exception) -> Response:
        """A fault of the server's own."""
        kind, path = type(error).__name__, request.url.path
        log.error("a fault of the server's own at %r", path, exc_info=error)
        return on_api_error(request, ApiError("server_error", f"{path}: {kind}: {error}"))

    return {
        ApiError: on_api_error,
        EngineError: on_engine_error,
        HTTPException: on_http_exception,
        ClientDisconnect: on_client_gone,
        Exception: on_exception,
    }


def from_http(request: HttpRequest, error: HTTPException) -> ApiError:
    """Unknown paths and wrong methods, which the framework finds."""
    message = {
        404: "File Not Found",  # llama-server's words
        405: f"Method {request.method} is not allowed on {request.url.path}",
    }.get(error.status_code, error.detail)
    kind = TYPE_OF_STATUS.get(error.status_code, "server_error")
    return ApiError(kind, message, headers=error.headers)
