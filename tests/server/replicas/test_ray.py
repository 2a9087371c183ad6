"""Engines that Ray starts: killed in the middle of answers, more of them under load, their end."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from four_dialects import CHAT, Asked, many
from ray_server import Server

pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def started() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*options: str) -> Server:
        servers.append(Server(*options))
        return servers[-1]

    yield start
    for server in servers:
        engines = server.engines()
        server.close()
        until = time.monotonic() + 60
        while left := [pid for pid in engines if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < until, f"engines are left: {left}"
            time.sleep(0.5)


def test_killed_engines_lose_nothing(started: Callable[..., Server]) -> None:
    """200 requests at a time in four dialects, in each of five an engine is killed."""
    server = started("--replicas", "2")
    server.wait_for_slots(8)
    niceness = {os.getpriority(os.PRIO_PROCESS, pid) for pid in server.engines()}
    assert niceness == {os.getpriority(os.PRIO_PROCESS, 0)}  # Ray's default is 15
    asked = many(200, 24)
    alone = server.ask_all(asked)
    assert all(alone)
    for _ in range(5):
        at, engine = random.randrange(20, 180), random.choice(server.engines())

        def kill(i: int, at: int = at, engine: int = engine) -> None:
            if i == at:
                time.sleep(random.uniform(0, 0.2))
                os.kill(engine, signal.SIGKILL)

        assert server.ask_all(asked, kill) == alone
        server.wait_for_slots(8)
    assert server.metric("llamacpp:engines_lost_total") == 5
    assert server.metric("llamacpp:requests_moved_total") >= 5
    assert server.metric("llamacpp:requests_routed_total") >= 1200


def test_engines_come_and_go_with_the_requests(started: Callable[..., Server]) -> None:
    """One more under load; when there is little, one less, and what it serves goes on."""
    server = started("--replicas", "1:2")
    assert server.n_slots == 4
    much, some = threading.Event(), threading.Event()
    much.set()
    some.set()

    def load() -> None:
        alone = server.ask_all(many(16, 60))
        while some.is_set():
            n = 16 if much.is_set() else 1
            assert server.ask_all(many(n, 60)) == alone[:n]

    thread = threading.Thread(target=load)
    thread.start()
    server.wait_for_slots(8)
    much.clear()
    server.wait_for_slots(4)
    some.clear()
    thread.join()


def test_open_requests_end_after_a_signal(started: Callable[..., Server]) -> None:
    server = started("--replicas", "1", "--drain-timeout", "60")
    texts: list[str] = []
    asked = Asked(CHAT, True, "Tell me about robots.", 1, 100)
    thread = threading.Thread(target=lambda: texts.append(server.ask(asked)))
    thread.start()
    time.sleep(0.5)
    server.process.terminate()
    thread.join()
    assert texts
    assert server.process.wait(60) == 0
