"""API keys: ``Authorization: Bearer k`` or ``X-Api-Key: k`` on every path but the public ones."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gguf_serve.server.errors import ApiError

PUBLIC_PATHS = frozenset({"/health", "/v1/health"})


class Keys:
    """The keys that are accepted; others may take their place while requests come."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self.replace(keys)

    def __bool__(self) -> bool:
        return bool(self._forms)

    def replace(self, keys: Iterable[str]) -> None:
        self._forms = tuple(form for key in keys for form in forms(key))

    def accept(self, given: bytes | None) -> bool:
        """Compare with every key, each in constant time, so that timing tells nothing."""
        matches = [hmac.compare_digest(given or b"", key) for key in self._forms]
        return given is not None and any(matches)


class KeyCheck:
    """Middleware; without keys every request passes, and those for files always do."""

    def __init__(self, app: ASGIApp, keys: Keys, is_file: Callable[[str], bool]) -> None:
        self.app = app
        self.is_file = is_file
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.keys or scope["path"] in PUBLIC_PATHS:
            return await self.app(scope, receive, send)
        if self.is_file(scope["path"]):
            return await self.app(scope, receive, send)
        if self.keys.accept(given_key(Headers(scope=scope))):
            return await self.app(scope, receive, send)
        headers = {"www-authenticate": "Bearer"}
        raise ApiError("authentication_error", "Invalid API Key", headers=headers)


def forms(key: str) -> set[bytes]:
    """A key as clients write it into a header: most in UTF-8, some in Latin-1."""
    found = {key.encode("utf-8", "surrogatepass")}
    with suppress(UnicodeEncodeError):
        found.add(key.encode("latin-1"))
    return found


def given_key(headers: Headers) -> bytes | None:
    """The bytes of the key: Starlette has read them as Latin-1, whatever they are."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip(" \t"):
        return key.strip(" \t").encode("latin-1")
    other = headers.get("x-api-key")
    return None if other is None else other.encode("latin-1")
