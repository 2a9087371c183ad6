"""What HTTP and SSE cost, how smooth streams stay, and what a shared prefix saves.

    serve -m model.gguf -np 8 -c 32768 &
    python scripts/bench_http.py --url http://127.0.0.1:8080

Measures against a running server: tokens per second of one and of eight streams, as the
clients see them, beside the engine's own figure (``timings``); the gaps between another
stream's tokens before and while a long prompt is processed; the time to the first token of
a prompt and of a second one that shares most of it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import random
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

JSON_HEADERS = {"Content-Type": "application/json"}


def stream(url: str, body: dict[str, Any]) -> Iterator[tuple[float, bytes]]:
    """Each SSE event of a completion, its data still encoded, with the time at which it came.

    By http.client, since client and server share the processor: httpx takes more time for an
    event than the server does.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    connection.request("POST", "/v1/completions", json.dumps(body), JSON_HEADERS)
    reply = connection.getresponse()
    if reply.status != 200:
        raise RuntimeError(f"status {reply.status}: {reply.read().decode()}")
    with contextlib.closing(connection):
        for line in reply:
            if line.startswith(b"data: {"):
                yield time.perf_counter(), line[6:]


def body(prompt: list[int], n: int) -> dict[str, Any]:
    return {
        "prompt": prompt, "max_tokens": n, "stream": True, "temperature": 0, "ignore_eos": True,
    }  # fmt: skip


def tokens(n: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1000, 20000) for _ in range(n)]


def rates(url: str, n_streams: int, n: int, seed: int) -> tuple[float, float]:
    """Tokens per second of all streams together: as received, and as the engine counts."""
    times: list[list[float]] = [[] for _ in range(n_streams)]
    engine: list[float] = [0.0] * n_streams

    def run(i: int) -> None:
        for at, event in stream(url, body(tokens(8, seed + i), n)):
            times[i].append(at)
            if b'"timings"' in event:
                engine[i] = json.loads(event)["timings"]["predicted_per_second"]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n_streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    received = [(n - 1) / (t[-1] - t[0]) for t in times]
    return sum(received), sum(engine)


def gaps(url: str, n_prompt: int) -> tuple[list[float], list[float]]:
    """Gaps between one stream's events before and while another's prompt is processed, ms."""
    marks: list[float] = []
    done = threading.Event()

    def listen() -> None:
        for at, _ in stream(url, body(tokens(8, 77), 1500)):
            marks.append(at)
            if done.is_set() and at > span[1] > 0:
                break

    span = [0.0, 0.0]
    thread = threading.Thread(target=listen)
    thread.start()
    time.sleep(1.5)
    span[0] = time.perf_counter()
    for at, _ in stream(url, body(tokens(n_prompt, 78), 1)):
        span[1] = at
        break
    done.set()
    thread.join()
    pairs = list(itertools.pairwise(marks))
    before = [(b - a) * 1e3 for a, b in pairs if b < span[0]]
    during = [(b - a) * 1e3 for a, b in pairs if b >= span[0] and a <= span[1]]
    return before, during


def first_token(url: str, prompt: list[int]) -> float:
    began = time.perf_counter()
    for at, _ in stream(url, body(prompt, 1)):
        return (at - began) * 1e3
    return float("nan")


def show(name: str, values: list[float]) -> None:
    ordered = sorted(values)
    points = [ordered[min(int(len(ordered) * q), len(ordered) - 1)] for q in (0.5, 0.9, 0.99)]
    print(
        f"{name}: {len(values)} gaps, median {points[0]:.1f}, 90 % {points[1]:.1f}, "
        f"99 % {points[2]:.1f}, longest {ordered[-1]:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--generate", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=2000)
    args = parser.parse_args()
    rates(args.url, 1, 32, 1)  # warm up
    for n in (1, 8):
        pairs = [rates(args.url, n, args.generate, 100 * n + 10 * i) for i in range(3)]
        received, engine = (statistics.median(x) for x in zip(*pairs, strict=True))
        print(
            f"{n} stream(s): received {received:.1f} tok/s, engine {engine:.1f} tok/s, "
            f"{received / engine:.1%}"
        )
    before, during = gaps(args.url, args.prompt)
    show("alone", before)
    show(f"while a prompt of {args.prompt} is processed", during)
    shared = tokens(args.prompt, 5)
    first = first_token(args.url, [*shared, *tokens(20, 6)])
    second = first_token(args.url, [*shared, *tokens(20, 7)])
    print(
        f"first token: {first:.0f} ms; sharing {args.prompt}: {second:.0f} ms, {second / first:.1%}"
    )


if __name__ == "__main__":
    main()
