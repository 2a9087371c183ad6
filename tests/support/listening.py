"""Where a test's server listens, and when."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


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
