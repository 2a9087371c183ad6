"""Engines that Ray starts: killed in the middle of streams, more of them under load, their end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")
pytestmark = pytest.mark.slow

SECONDS = 180.0  # Ray takes 15 to 30 to start


class Server:
    """``gguf-serve --replicas``, and the pids of its engines."""

    def __init__(self, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gguf_serve.server.cli", "--demo", "--port", str(port),
             "-np", "4", "-c", "2048", *options],
        )  # fmt: skip
        self.wait(lambda: httpx.get(self.url + "/health").status_code == 200)

    def wait(self, is_so: Callable[[], bool]) -> None:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            assert self.process.poll() is None
            try:
                if is_so():
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        raise AssertionError(f"not so after {SECONDS:g} seconds")

    @property
    def n_slots(self) -> int:
        return len(httpx.get(self.url + "/slots", timeout=20).json())

    def engines(self) -> list[int]:
        """Processes of Ray's that have an engine."""
        listed = subprocess.run(
            ["pgrep", "-f", "ray::ServeReplica"], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in listed.stdout.split()]

    def stream(self, i: int) -> str:
        """The text of a seeded stream; it must end as streams end."""
        body = {
            "prompt": f"Story {i} is about a robot that", "max_tokens": 100, "seed": i,
            "temperature": 0.8, "stream": True,
        }  # fmt: skip
        text, last = "", ""
        with httpx.stream("POST", self.url + "/v1/completions", json=body, timeout=SECONDS) as got:
            assert got.status_code == 200
            for line in filter(None, got.iter_lines()):
                last = line
                if line != "data: [DONE]":
                    text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
        assert last == "data: [DONE]"
        return text

    def streams(self, n: int) -> list[str]:
        texts = [""] * n

        def run(i: int) -> None:
            texts[i] = self.stream(i)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return texts


@pytest.fixture
def started() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*options: str) -> Server:
        servers.append(Server(*options))
        return servers[-1]

    yield start
    for server in servers:
        server.process.terminate()
        assert server.process.wait(60) == 0
        until = time.monotonic() + 60
        while server.engines():
            assert time.monotonic() < until, "engines are left"
            time.sleep(0.5)


def test_killed_engines_lose_nothing(started: Callable[..., Server]) -> None:
    server = started("--replicas", "2")
    server.wait(lambda: server.n_slots == 8)
    alone = server.streams(8)
    assert all(alone)
    niceness = {os.getpriority(os.PRIO_PROCESS, pid) for pid in server.engines()}
    assert niceness == {os.getpriority(os.PRIO_PROCESS, 0)}  # Ray's default is 15
    for round in range(3):
        engines = server.engines()
        kill = threading.Timer(0.7 + round, os.kill, (engines[round % 2], signal.SIGKILL))
        kill.start()
        assert server.streams(8) == alone
        kill.join()
        server.wait(lambda: server.n_slots == 8)


def test_engines_come_with_the_requests(started: Callable[..., Server]) -> None:
    server = started("--replicas", "1:2")
    assert server.n_slots == 4
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            server.streams(12)

    thread = threading.Thread(target=load)
    thread.start()
    server.wait(lambda: server.n_slots == 8)
    ended.set()
    thread.join()


def test_open_requests_end_after_a_signal(started: Callable[..., Server]) -> None:
    server = started("--replicas", "1", "--drain-timeout", "60")
    texts: list[str] = []
    thread = threading.Thread(target=lambda: texts.append(server.stream(1)))
    thread.start()
    time.sleep(0.5)
    server.process.terminate()
    thread.join()
    assert texts
    assert server.process.wait(60) == 0
