"""The histograms of /metrics against times that clients take: 4 slots, 50 clients at once."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from listening import free_port, wait_until_up
from msgspec import Struct, field

from gguf_serve.engine.request import Delta, Event, Finished, Request, Started, Timings
from gguf_serve.server.requests.service import Endpoints

N_CLIENTS, N_SLOTS = 50, 4
QUANTILES = [i / 20 for i in range(21)]


class Times(Struct):
    """Seconds that clients have waited, or an engine has taken."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


async def ask_all(url: str, n_tokens: int) -> Times:
    """Clients that write to sockets: a library would count its own milliseconds, 50 times."""
    port, times = int(url.rpartition(":")[2]), Times()
    ends = [await asyncio.open_connection("127.0.0.1", port) for _ in range(N_CLIENTS)]
    asked = (ask(*end, i, n_tokens, times) for i, end in enumerate(ends))
    await asyncio.wait_for(asyncio.gather(*asked), 300)
    return times


async def ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    number: int,
    n_tokens: int,
    times: Times,
) -> None:
    body = json.dumps({
        "prompt": f"{number} clients are", "max_tokens": n_tokens, "stream": True,
        "ignore_eos": True,
    })  # fmt: skip
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}"
    begin, last = time.perf_counter(), 0.0
    writer.write(f"{head}\r\n\r\n{body}".encode())
    while (line := await reader.readline()) != b"data: [DONE]\n":
        now = time.perf_counter()
        data = line.removeprefix(b"data: ")
        if data == line or not json.loads(data)["choices"][0]["text"]:
            continue
        if last:
            times.between.append(now - last)
        else:
            times.first.append(now - begin)
        last = now
    times.last.append(last - begin)
    times.whole.append(time.perf_counter() - begin)
    writer.close()


def histogram(text: str, name: str) -> tuple[list[float], list[int]]:
    """The bounds, and how many were at most each of them."""
    found = re.findall(rf'^{name}_bucket{{le="([^"]+)"[^}}]*}} (\S+)$', text, re.MULTILINE)
    assert found, name
    return [float(bound) for bound, _ in found], [int(float(n)) for _, n in found]


def bucket(bounds: Sequence[float], times: Sequence[float], share: float) -> int:
    """The number of the one that a quantile of these times is in."""
    return bisect_left(bounds, sorted(times)[round(share * (len(times) - 1))])


def check(text: str, name: str, times: Sequence[float]) -> None:
    """Each quantile is in the bucket of the clients', or in one beside it."""
    bounds, totals = histogram(text, name)
    for share in QUANTILES:
        expected = bucket(bounds, times, share)
        found = bisect_left(totals, round(share * (totals[-1] - 1)) + 1)
        assert abs(found - expected) <= 1, (name, share, bounds[found], bounds[expected])


def check_between(text: str, name: str, least: Sequence[float], most: Sequence[float]) -> None:
    """Each quantile is in the bucket of the engine's, in that of the clients', or between them:
    the server hears of everything after the one and before the other."""
    bounds, totals = histogram(text, name)
    assert totals[-1] == len(least) == len(most)
    for share in QUANTILES:
        found = bisect_left(totals, round(share * (totals[-1] - 1)) + 1)
        low, high = bucket(bounds, least, share), bucket(bounds, most, share)
        assert low <= found <= high, (name, share, bounds[low], bounds[found], bounds[high])


def check_gaps(text: str, start: str, least: Times, most: Times) -> None:
    """A client may wait for long where the server did not, and then for nothing: what is between
    the engine's and the clients' is the sum, which in turn agrees with the buckets."""
    first, gaps = f"{start}time_to_first_token_seconds", f"{start}inter_token_latency_seconds"
    total = sum_of(text, gaps)
    assert sum(least.last) <= sum_of(text, first) + total <= sum(most.last)
    bounds, totals = histogram(text, gaps)
    assert totals[-1] == len(most.between)
    counts = [high - low for low, high in pairwise([0, *totals])]
    below = sum(n * bound for n, bound in zip(counts, [0.0, *bounds[:-1]], strict=True))
    above = sum(n * bound for n, bound in zip(counts, bounds, strict=True) if n)
    assert below <= total <= above


def sum_of(text: str, name: str) -> float:
    found = re.search(rf"^{name}_sum(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


def metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics", timeout=20).text


class FourSlots:
    """A script for as many requests at once; each has four letters, the last one late."""

    def __init__(self) -> None:
        self.slots = threading.Semaphore(N_SLOTS)
        self.times = Times()

    def __call__(self, request: Request, cancelled: threading.Event) -> Iterator[Event]:
        begin = time.perf_counter()
        with self.slots:
            yield Started(len(request.prompt), 0, 0)
            time.sleep(0.12)
            self.times.first.append(time.perf_counter() - begin)
            for pause in (0.015, 0.015, 0.03):
                yield Delta("a", (97,))
                time.sleep(pause)
            self.times.last.append(time.perf_counter() - begin)
            yield Delta("a", (97,))
            self.times.whole.append(time.perf_counter() - begin)
            yield Finished("limit", Timings(predicted_n=4))


def test_of_a_scripted_engine(serve: Any, fakes: Any) -> None:
    script = FourSlots()
    engine = fakes.engine(script)
    engine.stats = lambda: fakes.stats
    url = serve(engine, endpoints=Endpoints(metrics=True))
    times = asyncio.run(ask_all(url, 4))
    text = metrics(url)
    for start in ("vllm:", "gguf_serve_"):
        names = [
            f"{start}{name}_seconds" for name in ("time_to_first_token", "e2e_request_latency")
        ]
        check_between(text, names[0], script.times.first, times.first)
        check_between(text, names[1], script.times.whole, times.whole)
        check_gaps(text, start, script.times, times)
    assert len(times.between) == 3 * N_CLIENTS


@pytest.mark.slow
def test_of_a_model(tmp_path: Path) -> None:
    """The demonstration model, in a process of its own."""
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "gguf_serve.server.cli", "--demo", "--metrics", "-np", "4"]
    with (
        log.open("w") as errors,
        subprocess.Popen([*command, "--port", str(port)], stderr=errors) as server,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_up(url, server, log, 60)
            times = asyncio.run(ask_all(url, 40))
            assert len(times.first) == len(times.whole) == N_CLIENTS
            text = metrics(url)
            for start in ("vllm:", "gguf_serve_"):
                check(text, f"{start}time_to_first_token_seconds", times.first)
                check(text, f"{start}inter_token_latency_seconds", times.between)
                check(text, f"{start}e2e_request_latency_seconds", times.whole)
                assert histogram(text, f"{start}e2e_request_latency_seconds")[1][-1] == N_CLIENTS
        finally:
            server.terminate()
