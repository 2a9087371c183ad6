"""A thread that does one thing after the other, whatever becomes of it."""

from __future__ import annotations

import threading

import pytest

from gguf_serve.engine.disk_cache.worker import Worker

SECONDS = 120


def test_in_order_until_it_is_closed() -> None:
    worker, done = Worker("test"), list[int]()
    for i in range(100):
        worker.do(lambda i=i: done.append(i))
    worker.close(SECONDS)
    assert done == list(range(100))
    worker.close(SECONDS)  # once more does no harm


def test_what_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    worker, done = Worker("test"), threading.Event()
    worker.do(lambda: 1 // 0)
    worker.do(done.set)
    worker.close(SECONDS)
    assert done.is_set()
    assert "the cache on disk: test has failed" in caplog.text


def test_nobody_waits_longer_than_said() -> None:
    worker, spins = Worker("test"), threading.Event()
    worker.do(lambda: (spins.wait(SECONDS), None)[1])
    worker.close(0.01)
    assert worker._thread.is_alive()
    assert worker._thread.daemon
    spins.set()
    worker.close(SECONDS)
    assert not worker._thread.is_alive()
