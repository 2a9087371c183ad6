"""Where a test's server listens, and when."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

# Below those that systems give to connections and to whoever asks for any.
PORTS = range(10_000, 32_000)
_ports = random.Random(os.getpid())  # each of the processes that test has its own order


def free_port() -> int:
    """One that nobody listens at, and that nobody else is likely to be given meanwhile."""
    while True:
        port = _ports.choice(PORTS)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:  # it is in use
            continue


def wait_until_up(url: str, process: subprocess.Popen[Any], log: Path, seconds: float) -> None:
    """Until /health is 200; if that takes longer or the process ends, the log's end is told."""
    end = time.monotonic() + seconds
    while not is_up(url):
        is_late = time.monotonic() > end
        assert not is_late and process.poll() is None, log.read_text()[-2000:]  # noqa: PT018
        time.sleep(0.1)


def is_up(url: str) -> bool:
    try:
        return httpx.get(url + "/health", timeout=60).status_code == 200
    except httpx.TransportError:
        return False
