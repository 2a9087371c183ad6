"""The error shape of every dialect; most have ``{"error": {"code", "message", "type", ...}}``.

The types and their status codes are llama-server's; ``code`` repeats the HTTP status.
Paths tell which dialect a client speaks: an error can come before anything has read its body.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import islice

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
    "header_too_large_error": 431,
    "server_error": 500,
    "not_supported_error": 501,
    "unavailable_error": 503,
}
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

    def body(self) -> dict[str, object]:
        error = {"code": self.status, "message": self.message, "type": self.type}
        return {"error": error | self.details}

    def response(self, path: str) -> Response:
        """The answer to a request of `path`, in the shape of its dialect."""
        shape = next((shape for start, shape in SHAPES if path.startswith(start)), ApiError.body)
        return json_response(shape(self), self.status, self.headers)


ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    414: "request_too_large",
    415: "invalid_request_error",
    431: "request_too_large",
    503: "overloaded_error",
}


def anthropic_body(error: ApiError) -> dict[str, object]:
    kind, message = ANTHROPIC_TYPES.get(error.status, "api_error"), error.message
    if error.type == "exceed_context_size_error":  # in the words at which agents compact
        n_tokens, n_ctx = error.details["n_prompt_tokens"], error.details["n_ctx"]
        message = f"prompt is too long: {n_tokens} tokens > {n_ctx} maximum; {message}"
    return {"type": "error", "error": {"type": kind, "message": message}}


def ollama_body(error: ApiError) -> dict[str, object]:
    return {"error": error.message}


# The beginnings of paths whose dialect has an error shape of its own.
SHAPES: tuple[tuple[str, Callable[[ApiError], dict[str, object]]], ...] = (
    ("/v1/messages", anthropic_body),
    ("/api/", ollama_body),
)


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


def on_api_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response(request.url.path)


def on_engine_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    return from_engine(error).response(request.url.path)


def on_http_exception(request: HttpRequest, error: Exception) -> Response:
    """Unknown paths and wrong methods, in the shape of every other error."""
    assert isinstance(error, HTTPException)
    message = {
        404: "File Not Found",  # llama-server's words
        405: f"Method {request.method} is not allowed on {request.url.path}",
    }.get(error.status_code, error.detail)
    kind = TYPE_OF_STATUS.get(error.status_code, "server_error")
    return ApiError(kind, message, headers=error.headers).response(request.url.path)


def on_client_gone(_: HttpRequest, error: Exception) -> Response:
    """The client left while it was sending its body; nobody reads this."""
    return Response(status_code=400)


def on_exception(request: HttpRequest, error: Exception) -> Response:
    """A fault of the server's own; the framework raises it again, which logs it."""
    kind, path = type(error).__name__, request.url.path
    return ApiError("server_error", f"{path}: {kind}: {error}").response(path)


EXCEPTION_HANDLERS = {
    ApiError: on_api_error,
    EngineError: on_engine_error,
    ClientDisconnect: on_client_gone,
    HTTPException: on_http_exception,
    Exception: on_exception,
}
