"""Not a test: watches a server for hostile.py, as ``hostile_watch.py PORT PID KEY``.

For each line of standard input, a time, it writes what it has seen since then. Only the standard
library, and no work between two looks, so that it sees the server's delays and not its own.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time

INTERVAL = 0.02  # seconds from one look at /health to the next
PAGE = os.sysconf("SC_PAGE_SIZE")
healths: list[tuple[float, float]] = []  # (when it was asked, seconds)
gaps: list[tuple[float, float]] = []  # (when the piece came, seconds since the one before)
memories: list[tuple[float, int]] = []
pending = {"health": 0.0, "piece": 0.0}  # since when something is waited for; 0: for nothing


def watch_health(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while True:
        began = pending["health"] = time.monotonic()
        connection.request("GET", "/health")
        connection.getresponse().read()
        healths.append((began, time.monotonic() - began))
        pending["health"] = 0.0
        time.sleep(INTERVAL)


def watch_stream(port: int, key: str) -> None:
    """One ordinary stream after another."""
    body = {"prompt": "Once upon a time", "n_predict": 1500, "stream": True, "ignore_eos": True}
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("POST", "/completion", json.dumps(body), headers)
        answer = connection.getresponse()
        last = 0.0
        while line := answer.readline():
            if not line.startswith(b"data: "):
                continue
            now = time.monotonic()
            if last:
                gaps.append((now, now - last))
            last = pending["piece"] = now
        pending["piece"] = 0.0
        connection.close()


def tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    found += map(int, file.read().split())
        except OSError:
            continue
    return found


def memory_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * PAGE
    except OSError:
        return 0


def watch_memory(pid: int) -> None:
    while True:
        memories.append((time.monotonic(), sum(map(memory_of, tree(pid)))))
        time.sleep(0.05)


def seen(began: float) -> dict[str, float]:
    """What is still waited for counts, too."""
    now = time.monotonic()
    late = {name: now - since if since else 0.0 for name, since in pending.items()}
    spans = [span for when, span in list(healths) if when + span >= began]
    pauses = sorted(span for when, span in list(gaps) if when >= began)
    return {
        "health": max([late["health"], *spans]),
        "gap": max([late["piece"], *pauses]),
        "usual_gap": pauses[len(pauses) * 95 // 100] if pauses else 0.0,
        "memory": max([size for when, size in list(memories) if when >= began], default=0),
    }


if __name__ == "__main__":
    port, pid, key = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    for watch, args in (
        (watch_health, (port,)),
        (watch_stream, (port, key)),
        (watch_memory, (pid,)),
    ):
        threading.Thread(target=watch, args=args, daemon=True).start()
    for line in sys.stdin:
        print(json.dumps(seen(float(line))), flush=True)
