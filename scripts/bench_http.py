"""What HTTP and SSE cost, how smooth streams stay, and what a shared prefix saves.

    serve -m model.gguf -np 8 -c 32768 &
    python scripts/bench_http.py --url http://127.0.0.1:8080

Measures against a running server: tokens per second of one and of eight streams, as the
clients see them, beside the engine's own figure (``timings``) and, with ``-m model.gguf``, by
turns with an engine without HTTP; the gaps between another
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
import re
import selectors
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout

from bench_engine import EngineSubject

ROUNDS = 3
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


class Receiver:
    """A streamed completion on a socket of its own, whose events are counted and not read."""

    MARK = b"data: {"

    def __init__(self, url: str, request: dict[str, Any]) -> None:
        parts = urlsplit(url)
        text = json.dumps(request).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        self.socket = socket.create_connection((parts.hostname, parts.port or 80))
        self.socket.sendall(head.encode() + text)
        self.times: list[float] = []
        self._end = b""

    def receive(self) -> bool:
        """Take what is there; False: that was the end."""
        data = self.socket.recv(1 << 16)
        known = len(self.MARK) - 1  # a mark may have begun in what came before
        n = (self._end[-known:] + data).count(self.MARK)
        self.times += [time.perf_counter()] * n
        self._end = (self._end + data)[-2048:]
        return bool(data)

    @property
    def engine_rate(self) -> float:
        """Tokens per second as the engine counts, from the last event."""
        found = re.search(rb'"predicted_per_second":([0-9.]+)', self._end)
        if found is None:
            end = self._end[-200:].decode(errors="replace")
            raise RuntimeError(f"no timings at the end of a stream: {end}")
        return float(found[1])


def rates(url: str, n_streams: int, n: int, seed: int) -> tuple[float, float]:
    """Tokens per second of all streams together: as received, and as the engine counts.

    One thread counts marks in what the sockets give: the client shares the server's cores, and
    is not what is measured.
    """
    receivers = [Receiver(url, body(tokens(8, seed + i), n)) for i in range(n_streams)]
    with selectors.DefaultSelector() as selector:
        for receiver in receivers:
            selector.register(receiver.socket, selectors.EVENT_READ, receiver)
        while selector.get_map():
            for key, _ in selector.select():
                if not key.data.receive():
                    selector.unregister(key.fileobj)
                    key.data.socket.close()
    engine = sum(r.engine_rate for r in receivers)  # first: it tells what went wrong
    received = [(n - 1) / (r.times[-1] - r.times[0]) for r in receivers]
    return sum(received), engine


def without_http(subject: EngineSubject, n_streams: int, n: int, seed: int) -> float:
    """Tokens per second of an engine in this process, asked for the same."""
    prompts = [tokens(8, seed + i) for i in range(n_streams)]
    return float(subject.op_streams(prompts, n)["value"])


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


def show_rates(url: str, subject: EngineSubject | None, n: int, n_tokens: int) -> None:
    rounds = []
    for i in range(ROUNDS):
        seed = 100 * n + 10 * i
        alone = 0.0 if subject is None else without_http(subject, n, n_tokens, seed)
        rounds.append((*rates(url, n, n_tokens, seed), alone))
    received, engine, alone = (statistics.median(x) for x in zip(*rounds, strict=True))
    beside = f", without HTTP {alone:.1f}, {received / alone:.1%}" if alone else ""
    print(f"{n} stream(s): received {received:.1f} tok/s, engine {engine:.1f}{beside}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("-m", "--model", type=Path, help="the server's, to compare without HTTP")
    parser.add_argument("--generate", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=2000)
    args = parser.parse_args()
    rates(args.url, 1, 32, 1)  # warm up
    subject = None if args.model is None else EngineSubject(
        args.model, n_ctx=args.generate + 64, n_slots=8, device=None, n_threads=0
    )  # fmt: skip
    for n in (1, 8):
        show_rates(args.url, subject, n, args.generate)
    if subject is not None:
        subject.close()
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
