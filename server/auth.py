"""API keys: ``Authorization: Bearer k`` or ``X-Api-Key: k`` on every path but the public ones."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError

PUBLIC_PATHS = frozenset({"/", "/health", "/v1/health"})


class KeyCheck:
    """Middleware; without keys every request passes."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self.app = app
        self.keys = tuple(key.encode() for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys and scope["path"] not in PUBLIC_PATHS:
            headers = Headers(scope=scope)
            if not self.accepts(given_key(headers)):
                error = ApiError(
                    "authentication_error",
                    "Invalid API Key",
                    headers={"www-authenticate": "Bearer"},
                )
                return await error.response(scope["path"])(scope, receive, send)
        return await self.app(scope, receive, send)

    def accepts(self, given: str | None) -> bool:
        """Compare with every key, each in constant time, so that timing tells nothing."""
        given_bytes = (given or "").encode("utf-8", "surrogatepass")
        matches = [hmac.compare_digest(given_bytes, key) for key in self.keys]
        return given is not None and any(matches)


def given_key(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key")
