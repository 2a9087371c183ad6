"""The model leaves memory when nobody asks, and comes back when one does.

After how long, --sleep-idle-seconds says, and Ollama's ``keep_alive`` after the last request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from gguf_serve.server.adapters import bring_back
from gguf_serve.server.interface import Engine
from gguf_serve.server.requests.service import Service

log = logging.getLogger(__name__)
# What can be answered without the model, and so neither wakes it nor keeps it awake.
QUIET_PATHS = frozenset(
    {
        "/",
        "/health",
        "/v1/health",
        "/props",
        "/models",
        "/v1/models",
        "/v1/stream",
        "/v1/streams/lookup",
        "/v1/audio/voices",
        "/v1/audio/models",
        "/audio/voices",
        "/audio/models",
        "/slots",
        "/metrics",
        "/api/ps",
        "/api/tags",
        "/api/version",
    }
)


BUSY = 1.0  # seconds until one looks again whether it may sleep


class Idle:
    """When the model sleeps. All of it runs in the event loop, loading and closing in threads."""

    def __init__(self, service: Service, seconds: float, load: Callable[[], Engine]) -> None:
        """``seconds``: below 0: never, unless a request says so."""
        self.service = service
        self.seconds = service.keep_alive = seconds
        self._load = load
        self._n_open = 0
        self._timer: asyncio.TimerHandle | None = None
        self._waking = asyncio.Lock()
        self._closing: asyncio.Future[None] | None = None

    def arm(self) -> None:
        """Begin to wait, once the model is there or the last request has been answered."""
        if self._timer is not None:
            self._timer.cancel()
        seconds = self.service.keep_alive
        if seconds >= 0:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._sleep)

    async def enter(self) -> None:
        """A request has come; wait until there is a model for it."""
        self._n_open += 1
        self.service.keep_alive = self.seconds
        if self._timer is not None:
            self._timer.cancel()
        async with self._waking:
            if self.service.is_sleeping:
                if self._closing is not None:
                    await self._closing
                log.info("waking up: loading the model again")
                self.service.loaded_engine = await asyncio.to_thread(self._load_again)
                self.service.is_sleeping = False

    def _load_again(self) -> Engine:
        """With the adapters that were there."""
        before = self.service.engine.adapters()
        engine = self._load()
        bring_back(before, engine)
        return engine

    def leave(self) -> None:
        self._n_open -= 1
        if self._n_open == 0:
            self.arm()

    def _sleep(self) -> None:
        """Let the model go, unless somebody has come meanwhile."""
        engine = self.service.loaded_engine
        if engine is None or self.service.works_alone:  # it still loads, or works
            self._timer = asyncio.get_running_loop().call_later(BUSY, self._sleep)
        elif self._n_open == 0 and not self.service.is_sleeping:
            log.info(
                "nobody has asked for %g seconds: the model leaves memory", self.service.keep_alive
            )
            self.service.is_sleeping = True
            loop = asyncio.get_running_loop()
            self._closing = loop.run_in_executor(None, engine.release)


class Wake:
    """Middleware: requests that need the model wait until it is awake."""

    def __init__(self, app: ASGIApp, idle: Idle) -> None:
        self.app = app
        self.idle = idle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in QUIET_PATHS:
            return await self.app(scope, receive, send)
        try:
            await self.idle.enter()
            return await self.app(scope, receive, send)
        finally:
            self.idle.leave()
