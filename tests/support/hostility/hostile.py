"""A server in a process of its own, and what others see of it while it is attacked.

For test_hostile.py. What is measured is measured by another process (hostile_watch.py), since one
that attacks is busy: the longest answer time of ``GET /health``, the longest gap of an ordinary
stream of another client, and the memory of the server with its children.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from listening import free_port, wait_until_up

ROOT = Path(__file__).resolve().parents[3]
KEYS = {"polite": "polite-key", "hostile": "hostile-key"}
HEALTH_BAR = 0.25  # seconds beyond what an idle server takes
GAP_TIMES = 3.0  # of the usual gap of a stream
PROMPT_CHUNK = (
    0.5  # seconds, more than engine/scheduling/pace.py lets a chunk of another's prompt take
)
MEMORY_BAR = 500 * 2**20  # bytes above the resting state
IDLE_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Send:
    """A request; the body is JSON, made when it is needed, or bytes."""

    path: str
    body: Callable[[], Any]
    expected: tuple[int, ...] = (400,)  # status; none: the client goes away without an answer
    patience: float = 60.0  # seconds; with no ``expected`` after so many the client goes away
    times: int = 1  # at once


SHORT = Send("/completion", lambda: {"prompt": "Hello", "n_predict": 2}, (200,))


@dataclass(frozen=True, slots=True)
class Row:
    """An attack: requests, or a function that does something else with a server's address.

    ``awaits``: what has to be there before this row holds; until then it is skipped.
    ``probe``: seconds that a short request of another client may take meanwhile; 0: none is made.
    ``asked``: that request.
    """

    name: str
    attack: Sequence[Send] | Callable[[Server], None]
    slow: bool = False
    awaits: str = ""
    args: tuple[str, ...] = ()  # more options of the server
    probe: float = 0.0
    asked: Send = SHORT


@dataclass(slots=True)
class Seen:
    """The worst that was seen; seconds, and bytes."""

    health: float
    gap: float
    usual_gap: float
    memory: int
    probe: float = 0.0

    def faults(self, idle: Seen, row: Row) -> list[str]:
        """What is beyond the bars."""
        gap_bar = GAP_TIMES * max(idle.gap, idle.usual_gap) + PROMPT_CHUNK
        found = []
        if self.health > idle.health + HEALTH_BAR:
            found.append(f"/health took {self.health:.3f} s, idle {idle.health:.3f} s")
        if self.gap > gap_bar:
            found.append(f"a stream's gap of {self.gap:.3f} s, the bar is {gap_bar:.3f} s")
        if self.memory > idle.memory + MEMORY_BAR:
            mib = (self.memory - idle.memory) / 2**20
            found.append(f"{mib:.0f} MiB above the resting {idle.memory / 2**20:.0f} MiB")
        if row.probe and self.probe > row.probe:
            found.append(f"a short request took {self.probe:.1f} s, the bar is {row.probe:.1f} s")
        return found


class Server:
    """The process, and the one that watches it."""

    def __init__(self, model: Path, args: Sequence[str], log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._watch: subprocess.Popen[str] | None = None
        self._at_rest: Seen | None = None
        command = [
            *(sys.executable, "-m", "gguf_serve.server"),
            *("-m", str(model), "--port", str(self.port)),
            *("-c", "4096", "--api-key", ",".join(KEYS.values()), "--metrics", *args),
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file
            )
        try:
            wait_until_up(self.url, self._process, log, 280)  # kernels may have to be compiled
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def at_rest(self, *, anew: bool) -> Seen:
        """What is seen of it while nothing attacks it: measured once, or ``anew``."""
        if self._at_rest is None or anew:
            if self._watch is None:
                self._watch = self._start_watch()
                time.sleep(0.5)  # until the stream flows
            began = time.monotonic()
            time.sleep(IDLE_SECONDS)
            self._at_rest = self.seen_since(began)
        return self._at_rest

    def seen_since(self, began: float) -> Seen:
        """The worst since a time, which is after the first rest."""
        assert self._watch is not None
        assert self._watch.stdin is not None
        assert self._watch.stdout is not None
        self._watch.stdin.write(f"{began}\n")
        self._watch.stdin.flush()
        line = self._watch.stdout.readline()
        assert line, f"the watch has ended; the server says: {self.log.read_text()[-1000:]}"
        return Seen(**json.loads(line))

    def _start_watch(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "tests/support/hostility/hostile_watch.py"), str(self.port),
             str(self._process.pid), KEYS["polite"]],
            stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
        )  # fmt: skip

    def post(self, send: Send, who: str = "hostile") -> int:
        """The status of the answer, all of which is read; 0: the client went away."""
        body = send.body()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {KEYS[who]}", "content-type": "application/json"}
        headers |= {"content-encoding": "gzip"} if data[:2] == b"\x1f\x8b" else {}
        try:
            with (
                httpx.Client(timeout=httpx.Timeout(send.patience, connect=10)) as client,
                client.stream("POST", self.url + send.path, content=data, headers=headers) as got,
            ):
                for _ in got.iter_raw():
                    pass
                return got.status_code
        except httpx.TimeoutException:
            return 0

    def close(self) -> None:
        if self._watch is not None:
            self._watch.terminate()
            self._watch.communicate()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
