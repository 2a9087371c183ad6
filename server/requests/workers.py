"""Threads for what a client may make slow: its templates, grammars and long texts.

A client has some of the threads at most, and clients come in turn. Whoever has sent hundreds of
slow pieces waits for them alone; the others find a thread, or wait for one piece.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from gguf_serve.server.http.client import client

T = TypeVar("T")
Work = tuple[Future[Any], Callable[[], Any]]


class Workers:
    """At most ``n`` threads, ``each`` of them for a client. May be used from any thread and event
    loop."""

    def __init__(self, n: int, name: str, each: int = 1) -> None:
        self._threads = ThreadPoolExecutor(n, name)
        self._lock = threading.Lock()
        self._n_free, self._each = n, each
        self._served = Counter[str]()  # threads, by client
        self._waiting: dict[str, deque[Work]] = {}  # by client, in the order of their turns

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """The result of ``work``, when it is the turn of who asks. What is cancelled before that
        is never begun."""
        return await asyncio.wrap_future(self.submit(client.get(), work, *args))

    def submit(self, name: str, work: Callable[..., T], *args: Any) -> Future[T]:
        """Begin a piece of work for a client, or have it wait."""
        future, context = Future[T](), copy_context()
        with self._lock:
            waiting = self._waiting.setdefault(name, deque())
            waiting.append((future, lambda: context.run(work, *args)))
            self._begin()
        return future

    def _begin(self) -> None:
        """Give free threads to clients that may have more, those first who have waited longest."""
        while self._n_free:
            may = (name for name in self._waiting if self._served[name] < self._each)
            if (name := next(may, None)) is None:
                return
            self._n_free -= 1
            self._served[name] += 1
            waiting = self._waiting.pop(name)
            future, work = waiting.popleft()
            if waiting:
                self._waiting[name] = waiting  # behind the others
            self._threads.submit(self._do, name, future, work)

    def _do(self, name: str, future: Future[Any], work: Callable[[], Any]) -> None:
        if future.set_running_or_notify_cancel():
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
        with self._lock:
            self._n_free += 1
            self._served[name] -= 1
            if not self._served[name]:
                del self._served[name]
            self._begin()
