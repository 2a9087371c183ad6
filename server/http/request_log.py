"""A line of the log for each request: what was asked, what became of it, and how fast.

    127.0.0.1 POST /v1/chat/completions 200 in 2.31 s: 31 tokens in (12 cached), 96 out,
    43.2 tokens/s, the first after 85 ms

What browsers and monitors read time and again is logged with ``-v`` only, unless it fails; that
the model is not loaded yet is what they ask for.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gguf_serve.server.account import Account, account
from gguf_serve.server.errors import LOADING

log = logging.getLogger(__name__)
READING = frozenset({"GET", "HEAD", "OPTIONS"})
PAGE = "/page/"  # in the path of what the chat page asks for beside answers
MAX_SHOWN = 300  # characters of a path, and of the reason of an error


class RequestLog:
    """Middleware, around all others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        current = Account()
        account.set(current)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                current.status = message["status"]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                current.is_complete = True

        try:
            return await self.app(scope, receive, watched)
        except Exception as error:
            current.error = current.error or f"{type(error).__name__}: {error}"
            raise
        finally:
            seconds = time.perf_counter() - current.began
            fields = described(scope, current, seconds)
            log.log(severity(scope, current), "%s", line(fields), extra={"fields": fields})


def severity(scope: Scope, current: Account) -> int:
    quiet = scope["method"] in READING or PAGE in scope["path"]
    if quiet and current.error == LOADING:
        return logging.DEBUG
    if current.error or (current.status is not None and current.status >= 400):
        return logging.WARNING
    return logging.DEBUG if quiet else logging.INFO


def described(scope: Scope, current: Account, seconds: float) -> dict[str, Any]:
    """The line's parts by their names in JSON; those that a request does not have are left out."""
    client = scope.get("client")
    found: dict[str, Any] = {
        "client": client[0] if client else "unix",
        "method": scope["method"],
        "path": printable(scope.get("raw_path", b"").decode("latin-1") or scope["path"]),
        "status": current.status,
        "seconds": round(seconds, 4),
        "prompt_tokens": current.n_prompt or None,
        "cached_tokens": current.n_cached if current.n_prompt else None,
        "completion_tokens": current.n_generated or None,
        "tokens_per_second": rounded(current.tokens_per_second, 2),
        "first_token_ms": rounded(current.first_token_ms, 1),
        "error": printable(current.error) or None,
    }
    if not current.is_complete:
        found["client_gone"] = True
    return {name: value for name, value in found.items() if value is not None}


def line(fields: dict[str, Any]) -> str:
    parts = []
    if "prompt_tokens" in fields:
        cached = f" ({fields['cached_tokens']} cached)" if fields["cached_tokens"] else ""
        parts.append(f"{fields['prompt_tokens']} tokens in{cached}")
    if "completion_tokens" in fields:
        parts.append(f"{fields['completion_tokens']} out")
    if "tokens_per_second" in fields:
        parts.append(f"{fields['tokens_per_second']:.1f} tokens/s")
    if "first_token_ms" in fields:
        parts.append(f"the first after {fields['first_token_ms']:.0f} ms")
    if "error" in fields:
        parts.append(fields["error"])
    elif "client_gone" in fields:
        parts.append("the client has gone")
    asked = f"{fields['client']} {fields['method']} {fields['path']}"
    begun = f"{asked} {fields.get('status', '-')} in {fields['seconds']:.2f} s"
    return f"{begun}: {', '.join(parts)}" if parts else begun


def rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def printable(text: str) -> str:
    """On one line, without anything that a terminal would obey: clients write into it."""
    shown = "".join(c if c.isprintable() else " " for c in text[:MAX_SHOWN])
    return " ".join(shown.split())
