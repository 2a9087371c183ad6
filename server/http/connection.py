"""One connection: uvicorn's protocol with limits, for clients that half-close, and HTTP/1.0.

What comes before the application sees a request is refused here, in the same words as elsewhere:
a header that is too long or too slow (431, 414, 408), a connection too many (503).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from functools import partial
from http import HTTPStatus
from typing import Any, cast

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gguf_serve.server.errors import ApiError, ErrorResponse, invalid
from gguf_serve.server.http.connections import ABORT, Connections, Limits
from gguf_serve.server.http.peer import STATUS_START, UntilClose, is_gone, probe

LINGER = 2.0  # seconds in which what a client still sends is thrown away, so that it reads why
PIPELINED = 16  # requests that wait for the answers to those before them


class RefusedError(Exception):
    """Raised out of the parser's callbacks to end parsing."""


class Connection(HttpToolsProtocol):
    def __init__(self, connections: Connections, respond: ErrorResponse, **given: Any) -> None:
        super().__init__(**given)
        self.registry = connections
        self.respond = respond
        self.limits = connections.limits
        self.host: str | None = None
        self._since = self.loop.time()  # when it became idle, or its request's header began
        self._n_begun = 0  # requests
        self._n_header: int | None = None  # bytes of an incomplete header; None: there is none
        self._n_rest = 0  # bytes since then that are no body
        self._has_body = False  # the last piece had some
        self._n_parsed = self._n_lines = 0  # bytes and headers that the parser has found of it
        self._served = False  # it has had a request
        self._answering: RequestResponseCycle | None = None
        self._no_room: str | None = None  # what it is told instead of an answer
        self._refusal: ApiError | None = None  # what the parser's callbacks have found
        self._deaf = False  # whatever still comes is thrown away
        self._closes_at = float("inf")
        self._unsent = 0  # bytes, when that last became less
        self._stuck_since = self._since

    # asyncio's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.host = self.client[0] if self.client else None
        if self.registry.overflows:
            return transport.abort()
        self._no_room = self.registry.admit(self)
        if self._no_room is not None:
            self._closes_at = self.loop.time() + LINGER
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.registry.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        n_begun, self._has_body = self._n_begun, False
        super().data_received(data)
        if self._deaf:
            return
        if self._n_header is None:
            self._check_rest(data, useful=self._has_body or self._n_begun != n_begun)
            return
        # All of the data is of this header, unless it began behind another request.
        if self._n_begun == n_begun or self._answering is None:
            self._n_header += len(data)
        if self._n_header > self.limits.header:
            self.refuse(self._header_too_long())

    def _check_rest(self, data: bytes, useful: bool) -> None:
        """What is neither header nor body: extensions of chunks, trailers, empty lines."""
        self._n_rest = 0 if useful else self._n_rest + len(data)
        if self._n_rest > self.limits.header:
            message = (
                f"A chunk's extension or the trailer is longer than {self.limits.header} bytes"
            )
            self.refuse(ApiError("header_too_large_error", message))

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client may end its side and wait for the answer; one that has gone looks the same
        until it is sent something."""
        cycle = self._answering
        if cycle is None or self.cycle.more_body or self.scheme == "https":
            return False
        self._deaf = True
        self.cycle.keep_alive = False
        probe(cycle, self.transport)
        for seconds in (0.02, 0.2, 0.5):  # then with each look at all connections
            self.loop.call_later(seconds, self._close_if_gone)
        return True

    # The parser's side

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if len(self.pipeline) >= PIPELINED:
            raise self._refused(invalid(f"More than {PIPELINED} requests without an answer"))
        self._n_begun += 1
        self._n_header = self._n_parsed = self._n_lines = 0
        self._since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._n_parsed += len(url)
        if len(self.url) > self.limits.request_line:
            limit = self.limits.request_line
            message = f"The request line is longer than {limit} bytes (--max-request-line)"
            raise self._refused(ApiError("uri_too_long_error", message))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._n_header is None:
            return  # of a trailer: nothing here asks for one
        super().on_header(name, value)
        self._n_lines += 1
        self._n_parsed += len(name) + len(value) + 4
        if self._n_parsed > self.limits.header:
            raise self._refused(self._header_too_long())
        if self._n_lines > self.limits.header_count:
            limit = self.limits.header_count
            message = f"The request has more than {limit} headers (--max-header-count)"
            raise self._refused(ApiError("header_too_large_error", message))

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._has_body = True

    def on_headers_complete(self) -> None:
        self._n_header = None
        self._served = True
        super().on_headers_complete()

    # uvicorn's side

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        self.registry.set_busy(self)
        cycle.scope.setdefault("extensions", {})[ABORT] = self.drop  # type: ignore
        if self._no_room is not None:
            cycle.keep_alive = False
            if not cycle.scope["path"].endswith("/health"):  # else it would look dead
                app = Refusal(
                    ApiError("unavailable_error", f"No room: {self._no_room}"), self.respond
                )
        if cycle.scope["http_version"] < "1.1":
            app = UntilClose(app, cycle)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self._answering = None
        super().on_response_complete()
        if self._answering is None:
            self._since = self.loop.time()
            if self.cycle.more_body:  # it was refused before all of it was there
                self._closes_at = self._since + self.limits.header_timeout
            else:
                self.registry.set_idle(self)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._answering is None and self._closes_at != float("inf") and not self._deaf:
            self.cycle.more_body = False
            self._closes_at = float("inf")
            self.registry.set_idle(self)

    def send_400_response(self, msg: str) -> None:
        """The parser has given up, by itself or because of a limit."""
        self.refuse(self._refusal or invalid(msg))

    def refuse(self, error: ApiError) -> None:
        """Answer what will not become a request, once earlier ones have been answered."""
        self._deaf = True
        cycle = self._answering
        if cycle is None:
            answered = self.cycle is not None and self.cycle.more_body  # before its body came
            self._say_and_close(None if answered else error)
        elif not self.cycle.more_body:
            self.cycle.keep_alive = False
        elif cycle is self.cycle:  # whoever waits for the rest of its body is told
            cycle.disconnected = True
            cycle.message_event.set()
            self._say_and_close(None if cycle.response_started else error)
        else:  # a body that nobody reads yet
            self.transport.abort()

    def _say_and_close(self, error: ApiError | None) -> None:
        if error is not None:
            path = getattr(self, "url", b"").decode("latin-1")
            self.transport.write(written(self.respond(error, path)))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._closes_at = self.loop.time() + LINGER
        else:
            self.transport.close()

    def _refused(self, error: ApiError) -> RefusedError:
        self._refusal = error
        return RefusedError()

    def _header_too_long(self) -> ApiError:
        message = f"The header is longer than {self.limits.header} bytes (--max-header)"
        return ApiError("header_too_large_error", message)

    # The registry's side

    def drop(self) -> None:
        found = self.transport.get_extra_info("socket")
        unsent = self.transport.get_write_buffer_size()
        if unsent and found is not None:  # else the system would keep its part of it
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def n_stuck(self, now: float) -> int:
        return self._unsent if now - self._stuck_since > self.limits.patience else 0

    def check(self, now: float) -> None:
        if now > self._closes_at or self._is_stuck(now):
            return self.drop()
        if self._deaf:
            return self._close_if_gone()
        if self._answering is not None:
            return None
        limits, waited = self.limits, now - self._since
        if self._n_header is not None and waited > limits.header_timeout:
            message = f"The header did not arrive within {limits.header_timeout:g} seconds"
            return self.refuse(ApiError("timeout_error", message))
        if waited > (limits.idle_timeout if self._served else limits.header_timeout):
            return self.drop()
        return None

    def _is_stuck(self, now: float) -> bool:
        """Whether its client has taken nothing for too long of what waits for it."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent:
            self._stuck_since = now
        self._unsent = unsent
        return now - self._stuck_since > self.limits.send_timeout

    def _close_if_gone(self) -> None:
        if self._answering is not None and is_gone(self.transport):
            self.transport.abort()


def protocol(respond: ErrorResponse, limits: Limits | None = None) -> type[asyncio.Protocol]:
    """What uvicorn is to make connections of; those of one call are counted together."""
    made = partial(Connection, Connections(limits), respond)
    return cast("type[asyncio.Protocol]", made)


class Refusal:
    """The application that gives every request the same error."""

    def __init__(self, error: ApiError, respond: ErrorResponse) -> None:
        self.error = error
        self.respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.respond(self.error, scope["path"])(scope, receive, send)


def written(response: Response) -> bytes:
    """An answer as it goes over the wire, after which the connection is closed."""
    status = f"{response.status_code} {HTTPStatus(response.status_code).phrase}"
    headers = [*response.raw_headers, (b"connection", b"close")]
    lines = [STATUS_START + status.encode(), *(name + b": " + value for name, value in headers)]
    return b"\r\n".join([*lines, b"", bytes(response.body)])
