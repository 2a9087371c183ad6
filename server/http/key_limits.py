"""--limits FILE: how many requests a key may have at once, and how many tokens a minute.

    [default]
    requests = 8
    tokens_per_minute = 100_000

    [keys.2bb80d537b1da3e3]
    tokens_per_minute = 1_000_000

A key is named by the beginning of its SHA-256, as in /metrics; what a key's own table does not
say is the default's. Without keys the default holds for each address.
"""

from __future__ import annotations

import math
import time
import tomllib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from msgspec import Struct, field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gguf_serve.server.errors import ApiError
from gguf_serve.server.http.client import client

MOST_CLIENTS = 4096  # whose tokens are remembered
MINUTE = 60.0  # seconds
NAMES = ("requests", "tokens_per_minute")


class Limit(Struct, frozen=True):
    """None: there is none."""

    requests: int | None = None
    tokens_per_minute: int | None = None


class Limits(Struct, frozen=True):
    default: Limit = field(default_factory=Limit)
    keys: Mapping[str, Limit] = field(default_factory=dict)

    def of(self, name: str) -> Limit:
        return self.keys.get(name, self.default)


def read_limits(text: str) -> Limits:
    """ValueError says what is wrong with a file's text."""
    found = tomllib.loads(text)
    unknown = found.keys() - {"default", "keys"}
    if unknown:
        raise ValueError(f"[{min(unknown)}] is not known; expected [default] and [keys.NAME]")
    keys = found.get("keys", {})
    if not isinstance(keys, dict):
        raise ValueError(f"keys: expected tables, got {keys!r}")
    default = limit("default", found.get("default", {}), Limit())
    return Limits(default, {name: limit(f"keys.{name}", t, default) for name, t in keys.items()})


def limit(name: str, table: Any, default: Limit) -> Limit:
    if not isinstance(table, dict):
        raise ValueError(f"{name}: expected a table, got {table!r}")
    for key, value in table.items():
        if key not in NAMES:
            raise ValueError(f"[{name}] {key} is not known; expected {' or '.join(NAMES)}")
        if type(value) is not int or value < 1:
            raise ValueError(f"[{name}] {key}: expected a number above 0, got {value!r}")
    values = {key: table.get(key, getattr(default, key)) for key in NAMES}
    return Limit(**values)


class _Client(Struct):
    running: int = 0
    spent: float = 0.0  # tokens, less those that the time since has given back
    at: float = 0.0


class Limiter:
    """Used by the event loop alone. A minute's tokens come back evenly as time goes by; a request
    begins while any are left, so that its own may go beyond them, and the next one waits longer."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    def replace(self, limits: Limits | None) -> None:
        """From now on; what has been spent stays spent."""
        self.limits = limits or Limits()

    def begin(self, name: str) -> None:
        """ApiError 429 for one request more than the limits allow."""
        allowed, state = self.limits.of(name), self._state(name)
        if allowed.requests is not None and state.running >= allowed.requests:
            raise too_many(f"{state.running} requests run, at most {allowed.requests} may", 1)
        per_minute = allowed.tokens_per_minute
        if per_minute is not None and state.spent >= per_minute:
            wait = (state.spent - per_minute) / per_minute * MINUTE
            raise too_many(f"more than {per_minute} tokens in a minute", math.floor(wait) + 1)
        state.running += 1

    def end(self, name: str) -> None:
        self._state(name).running -= 1

    def spend(self, name: str, n_tokens: int) -> None:
        self._state(name).spent += n_tokens

    def _state(self, name: str) -> _Client:
        now = self._clock()
        state = self._clients.get(name)
        if state is None:
            state = self._clients[name] = _Client(at=now)
            if len(self._clients) > MOST_CLIENTS:
                self._forget()
        self._clients.move_to_end(name)
        per_minute = self.limits.of(name).tokens_per_minute or 0
        state.spent = max(state.spent - per_minute * (now - state.at) / MINUTE, 0.0)
        state.at = now
        return state

    def _forget(self) -> None:
        """The one that nothing has been heard of for longest, of those that are not served."""
        name = next((name for name, one in self._clients.items() if not one.running), None)
        if name is not None:
            del self._clients[name]


def too_many(what: str, seconds: int) -> ApiError:
    message = f"Rate limit: {what} (--limits); try again in {seconds} s"
    return ApiError("rate_limit_error", message, headers={"retry-after": str(seconds)})


class Limited:
    """Middleware, behind Client: a POST counts from its header to the end of its answer."""

    def __init__(self, app: ASGIApp, limiter: Limiter) -> None:
        self.app = app
        self.limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        name = client.get()
        self.limiter.begin(name)
        with ExitStack() as place:
            place.callback(self.limiter.end, name)

            async def ending(message: Message) -> None:
                # Who has the whole answer may ask again before what follows it here is done.
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    place.close()
                await send(message)

            return await self.app(scope, receive, ending)
