"""Who asks: the key of a request, or the address that it comes from, as clients take turns."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gguf_serve.server.http.auth import given_key
from gguf_serve.server.http.connections import address_key

# Of the request that is being answered. It is made known here, and not handed through all that
# reads a request, since only the engine's queue wants it.
client: ContextVar[str] = ContextVar("client", default="")
# And what a client calls its conversation, by which one of several engines is found again.
session: ContextVar[str] = ContextVar("session", default="")
# The conversation under whose name its stream is kept; "": it is not.
conversation: ContextVar[str] = ContextVar("conversation", default="")
# Whether somebody waits for its answer.
is_awaited: ContextVar[bool] = ContextVar("is_awaited", default=True)
SESSION_FIELDS = ("prompt_cache_key", "user")
LONGEST_SESSION = 256  # characters of it that count


def note_session(fields: Mapping[str, Any]) -> None:
    """Where the header ``x-session-id`` names none, a field of the body may."""
    if not session.get():
        named = (name for field in SESSION_FIELDS if (name := fields.get(field)))
        name = next(named, "")
        session.set(name[:LONGEST_SESSION] if isinstance(name, str) else "")


class Client:
    """Middleware, behind the check of keys: says who asks while a request is answered."""

    def __init__(self, app: ASGIApp, has_keys: bool) -> None:
        self.app = app
        self.has_keys = has_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            client.set(self._name(scope))
            headers = Headers(scope=scope)
            session.set(headers.get("x-session-id", "")[:LONGEST_SESSION])
            conversation.set(headers.get("x-conversation-id", ""))
        await self.app(scope, receive, send)

    def _name(self, scope: Scope) -> str:
        """Without keys, a header says nothing: whoever wants many turns could write any."""
        key = given_key(Headers(scope=scope)) if self.has_keys else None
        if key is not None:
            return hashlib.sha256(key).hexdigest()[:16]  # a key is a secret
        return address_key(scope["client"][0] if scope.get("client") else None)
