"""The error shape of every endpoint: ``{"error": {"code", "message", "type", ...}}``.

The types and their status codes are llama-server's; ``code`` repeats the HTTP status.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from engine.errors import (
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
    "payload_too_large_error": 413,
    "server_error": 500,
    "not_supported_error": 501,
    "unavailable_error": 503,
}
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
        super().__init__(message)
        self.type = type
        self.status = STATUS[type]
        self.message = message
        self.details = dict(details or {})
        self.headers = headers

    def body(self) -> dict[str, object]:
        error = {"code": self.status, "message": self.message, "type": self.type}
        return {"error": error | self.details}

    def response(self) -> Response:
        return json_response(self.body(), self.status, self.headers)


def invalid(message: str) -> ApiError:
    return ApiError("invalid_request_error", message)


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


def on_api_error(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


def on_engine_error(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    return from_engine(error).response()


def on_http_exception(request: HttpRequest, error: Exception) -> Response:
    """Unknown paths and wrong methods, in the shape of every other error."""
    assert isinstance(error, HTTPException)
    message = {
        404: "File Not Found",  # llama-server's words
        405: f"Method {request.method} is not allowed on {request.url.path}",
    }.get(error.status_code, error.detail)
    kind = TYPE_OF_STATUS.get(error.status_code, "server_error")
    return ApiError(kind, message, headers=error.headers).response()


def on_client_gone(_: HttpRequest, error: Exception) -> Response:
    """The client left while it was sending its body; nobody reads this."""
    return Response(status_code=400)


def on_exception(request: HttpRequest, error: Exception) -> Response:
    """A fault of the server's own; the framework raises it again, which logs it."""
    kind = type(error).__name__
    return ApiError("server_error", f"{request.url.path}: {kind}: {error}").response()


EXCEPTION_HANDLERS = {
    ApiError: on_api_error,
    EngineError: on_engine_error,
    ClientDisconnect: on_client_gone,
    HTTPException: on_http_exception,
    Exception: on_exception,
}
