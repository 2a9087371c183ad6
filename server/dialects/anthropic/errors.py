"""Anthropic's errors."""

from __future__ import annotations

from gguf_serve.server.errors import ApiError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    414: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "request_too_large",
    503: "overloaded_error",
}


def error_body(error: ApiError) -> dict[str, object]:
    kind, message = TYPES.get(error.status, "api_error"), error.message
    if error.type == "exceed_context_size_error":  # in the words at which agents compact
        n_tokens, n_ctx = error.details["n_prompt_tokens"], error.details["n_ctx"]
        message = f"prompt is too long: {n_tokens} tokens > {n_ctx} maximum; {message}"
    return {"type": "error", "error": {"type": kind, "message": message}}
