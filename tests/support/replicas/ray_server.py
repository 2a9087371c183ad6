"""``gguf-serve --replicas`` in a process of its own, and its engines' processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from four_dialects import Asked, ask

SECONDS = 180.0  # Ray takes 15 to 30 to start
AT_ONCE = 16  # requests


class Server:
    """The server, which stands when it is made."""

    def __init__(
        self,
        *options: str,
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        roots: Sequence[int] = (),
    ) -> None:
        """``command``: what comes before Python's; ``roots``: processes whose descendants have the
        engines, where the server starts no Ray of its own."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [*command, sys.executable, "-m", "gguf_serve.server.cli", "--demo", "--port",
             str(port), "-np", "4", "-c", "2048", "--metrics", *options],
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        self._roots = tuple(roots) or (self.process.pid,)
        self.wait(lambda: httpx.get(self.url + "/health").status_code == 200)

    def wait(self, is_so: Callable[[], bool], seconds: float = SECONDS) -> float:
        """Until something is so; the seconds that it took."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            assert self.process.poll() is None
            try:
                if is_so():
                    return passed
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"not so after {seconds:g} seconds")

    def wait_for_slots(self, n: int, seconds: float = SECONDS) -> float:
        return self.wait(lambda: self.n_slots == n, seconds)

    @property
    def n_slots(self) -> int:
        return len(httpx.get(self.url + "/slots", timeout=20).json())

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = httpx.get(self.url + "/metrics", timeout=20).text.splitlines()
        found = [line for line in lines if line.startswith((name + " ", name + "{"))]
        return sum(float(line.split()[-1]) for line in found)

    def engines(self) -> list[int]:
        """Processes of Ray's that have an engine."""
        return [pid for root in self._roots for pid in descendants(root) if is_engine(pid)]

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(60) == 0

    def ask(self, asked: Asked) -> str:
        return ask(self.url, asked, SECONDS)

    def ask_all(
        self, asked: Sequence[Asked], before: Callable[[int], None] = lambda i: None
    ) -> list[str]:
        """The texts of requests, some at once; ``before`` is called before each, by its place."""

        def one(i: int) -> str:
            before(i)
            return self.ask(asked[i])

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(one, range(len(asked))))


def descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, left = list[int](), [root]
    while left:
        found += (more := children.get(left.pop(), []))
        left += more
    return sorted(found)


def is_engine(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ServeReplica")
    except OSError:
        return False
