"""Slow work of one client is not in the way of another's."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gguf_serve.server.http.client import client
from gguf_serve.server.requests.workers import Workers


def test_another_client_finds_a_thread() -> None:
    workers, stop = Workers(2, "test"), threading.Event()
    slow = [workers.submit("one", stop.wait) for _ in range(10)]
    assert workers.submit("other", lambda: 7).result(10) == 7
    assert not any(future.done() for future in slow)
    stop.set()
    assert all(future.result(10) for future in slow)


def test_a_client_may_have_several_threads() -> None:
    """What is quick is not behind what is slow, up to so many slow ones."""
    workers, stop = Workers(3, "test", each=2), threading.Event()
    slow = workers.submit("one", stop.wait)
    assert workers.submit("one", lambda: 7).result(10) == 7
    others = [workers.submit("one", stop.wait) for _ in range(2)]
    assert workers.submit("other", lambda: 8).result(10) == 8
    waiting = workers.submit("one", lambda: 9)
    assert not waiting.done()
    stop.set()
    assert all(future.result(10) for future in (slow, *others))
    assert waiting.result(10) == 9


def test_clients_come_in_turn() -> None:
    workers, go, order = Workers(1, "test"), threading.Event(), list[str]()
    first = workers.submit("a", go.wait)
    names = ["a", "a", "b", "b", "c"]
    others = [workers.submit(name, order.append, name) for name in names]
    go.set()
    for future in [first, *others]:
        future.result(10)
    assert order == ["a", "b", "c", "a", "b"]


def test_what_is_cancelled_is_not_begun_and_errors_are_told() -> None:
    workers, go, done = Workers(1, "test"), threading.Event(), list[int]()
    first = workers.submit("a", go.wait)
    cancelled = workers.submit("a", done.append, 1)
    failing = workers.submit("a", lambda: 1 // 0)
    assert cancelled.cancel()
    go.set()
    assert first.result(10)
    with pytest.raises(ZeroDivisionError):
        failing.result(10)
    assert done == []


def test_who_asks_is_known() -> None:
    async def ask() -> str:
        client.set("somebody")
        return await Workers(1, "test").run(client.get)

    assert asyncio.run(ask()) == "somebody"
