"""For clients that have closed their side and wait, or know no chunks; and who of them is gone."""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

STATUS_START = b"HTTP/1.1 "  # of every answer


class UntilClose:
    """The application for a client that knows no chunks: its answer ends with the connection."""

    def __init__(self, app: ASGIApp, cycle: RequestResponseCycle) -> None:
        self.app = app
        self.cycle = cycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_plainly(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message.get("headers", [])}
                if b"content-length" not in names:
                    self.cycle.chunked_encoding = False
            elif self.cycle.chunked_encoding is False and not self.cycle.expected_content_length:
                self.cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await self.app(scope, receive, send_plainly)


class Remainder:
    """A transport whose client has been sent the first bytes of what comes next."""

    def __init__(self, transport: asyncio.Transport, sent: bytes) -> None:
        self._transport = transport
        self._sent = sent

    def write(self, data: bytes) -> None:
        if data.startswith(self._sent):
            data = data[len(self._sent) :]
        self._sent = b""
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def probe(cycle: RequestResponseCycle, transport: asyncio.Transport) -> None:
    """Send what any answer goes on with: whoever has closed the connection will say so.

    That is the beginning of a status line, or a zero in front of the next chunk's length.
    """
    if not cycle.response_started:
        transport.write(STATUS_START)
        cycle.transport = Remainder(transport, STATUS_START)  # type: ignore[assignment]
    elif cycle.chunked_encoding:
        transport.write(b"0")


def is_gone(transport: asyncio.Transport) -> bool:
    """Whether the other side has closed the connection, and not only its half."""
    found = select.poll()
    with contextlib.suppress(OSError, ValueError):  # it has been closed here
        found.register(transport.get_extra_info("socket").fileno(), 0)
        return bool(found.poll(0))
    return False
