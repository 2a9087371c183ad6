"""What --cache-disk gains, and what it costs: bench.py --disk.

Servers in processes of their own are asked over HTTP. The first token of a prompt that is computed,
loaded from the folder after a ``kill -9``, and found in memory; the last two have to be the same
tokens with the same log-probabilities, bit by bit. Then, in turns with a server without a folder,
one stream and eight that are written to it while they generate. Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench_http import body, stream, tokens

ROOT = Path(__file__).resolve().parent.parent
PAGE = 32  # tokens
SUFFIX = 12  # tokens of a prompt after its last full page
READY_SECONDS, WRITTEN_SECONDS = 300.0, 60.0
N_STREAMS, SHORT, LONG = 8, 160, 520  # streams, and tokens of their prompts; of a prompt alone
HEAD = ["measurement", "unit", "without", "--cache-disk", "in memory"]


class DifferenceError(Exception):
    """What came from the folder is not what memory has."""


@dataclass
class Answer:
    """What a client has received, and when."""

    began: float
    times: list[float] = field(default_factory=list)
    said: list[Any] = field(default_factory=list)  # texts with log-probabilities
    n_cached: int = 0

    @property
    def first(self) -> float:
        return self.times[0] - self.began

    @property
    def rate(self) -> float:
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])

    def longest_gap(self, since: float = 0.0) -> float:
        """In milliseconds, of those that begin after a moment; 0: none does."""
        gaps = ((b - a) * 1e3 for a, b in pairwise(self.times) if a >= since)
        return max(gaps, default=0.0)


class Server:
    """``serve`` with a model, in a process of its own."""

    def __init__(self, model: Path, n_ctx: int, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "gguf_serve.server.cli", "-m", str(model)]
        command += ["--port", str(port), "-c", str(n_ctx), "--metrics", *options]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._wait_until(self._is_ready, READY_SECONDS)
        self.ask(tokens(8, 1), 8)

    def ask(self, prompt: Sequence[int], n: int, **fields: Any) -> Answer:
        answer = Answer(time.perf_counter())
        for at, data in stream(self.url, body(list(prompt), n) | fields):
            event = json.loads(data)
            for choice in event["choices"]:
                if choice["text"] or choice["logprobs"]:
                    answer.times.append(at)
                    answer.said.append([choice["text"], choice["logprobs"]])
            answer.n_cached = event.get("timings", {}).get("cache_n", answer.n_cached)
        return answer

    def wait_until_written(self, n: int) -> None:
        """So many files, and then no more for a moment."""

        def is_written() -> bool:
            before = self._n_written()
            time.sleep(0.5)
            return n <= before == self._n_written()

        self._wait_until(is_written, WRITTEN_SECONDS)

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text("utf-8").rsplit(")", 1)[1]
        return sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _n_written(self) -> int:
        lines = self._get("/metrics").splitlines()
        name = "llamacpp:cache_disk_written_total "
        return int(float(next(line for line in lines if line.startswith(name)).split()[1]))

    def _is_ready(self) -> bool:
        try:
            return bool(self._get("/health"))
        except OSError:
            if self._process.poll() is not None:
                raise RuntimeError(f"serve has ended with {self._process.returncode}") from None
            return False

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=60) as reply:
            return str(reply.read().decode())

    def _wait_until(self, is_so: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > end:
                raise RuntimeError(f"the server is not as far after {seconds:.0f} s")
            time.sleep(0.05)


@contextlib.contextmanager
def serving(model: Path, n_ctx: int, *options: str) -> Iterator[Server]:
    server = Server(model, n_ctx, *options)
    try:
        yield server
    finally:
        server.kill()


def first_tokens(model: Path, lengths: Sequence[int]) -> list[list[str]]:
    """A row for each length. DifferenceError: tokens or log-probabilities are others."""
    n_ctx = max(lengths) + 4 * PAGE
    computed, memory, disk = [], [], []
    prompts = [(tokens(n, n), tokens(SUFFIX, n + 1), tokens(SUFFIX, n + 2)) for n in lengths]
    with tempfile.TemporaryDirectory() as folder:
        options = ("-np", "1", "--cache-disk", folder, "--cache-disk-min-tokens", "64")
        with serving(model, n_ctx, *options) as server:
            for shared, first, second in prompts:
                computed.append(server.ask([*shared, *first], 1))
                memory.append(server.ask([*shared, *second], 16, logprobs=5))
            # Of models with checkpoints the last one may be a page before the end.
            server.wait_until_written(sum(n // PAGE - 1 for n in lengths))
        with serving(model, n_ctx, *options) as server:
            for shared, _, second in prompts:
                disk.append(server.ask([*shared, *second], 16, logprobs=5))
    return [
        first_token_row(n, *answers)
        for n, *answers in zip(lengths, computed, disk, memory, strict=True)
    ]


def first_token_row(n: int, computed: Answer, disk: Answer, memory: Answer) -> list[str]:
    name = f"first token of {n + SUFFIX} tokens, {disk.n_cached} of them on disk"
    if not disk.n_cached:
        raise DifferenceError(f"nothing of {n + SUFFIX} tokens was loaded")
    if disk.n_cached != memory.n_cached:
        name += f" ({memory.n_cached} in memory)"
    elif disk.said != memory.said:
        raise DifferenceError(f"{n + SUFFIX} tokens: {disk.said} instead of {memory.said}")
    return [name, "s", *(f"{answer.first:.2f}" for answer in (computed, disk, memory))]


@dataclass
class Beside:
    """What one server did in all rounds."""

    rates: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def beside(model: Path, n_generate: int, n_rounds: int) -> list[list[str]]:
    """Rows of one stream and of eight, without and with what is written beside them."""
    n_ctx = N_STREAMS * (SHORT + n_generate + PAGE)
    common = ("-np", str(N_STREAMS), "--kv-unified")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(model, n_ctx, *common) as off,
        serving(
            model, n_ctx, *common, "--cache-disk", folder, "--cache-disk-min-tokens", "64"
        ) as on,
    ):
        return [
            *taking_turns("1 stream", off, on, [LONG], n_generate, n_rounds),
            *taking_turns(
                f"{N_STREAMS} streams", off, on, [SHORT] * N_STREAMS, n_generate // 2, n_rounds
            ),
        ]


def taking_turns(
    name: str, off: Server, on: Server, lengths: Sequence[int], n_generate: int, n_rounds: int
) -> list[list[str]]:
    found = {off: Beside(), on: Beside()}
    for i in range(n_rounds):
        for server in (off, on) if i % 2 else (on, off):
            measure(server, found[server], lengths, n_generate, 1000 * i)
    without, with_it = found[off], found[on]
    return [
        row(f"{name}, each {n_generate} after {lengths[0]}", "tok/s", without.rates, with_it.rates),
        row("longest gap between two tokens", "ms", without.gaps, with_it.gaps),
        row("processor time", "s", without.cpu, with_it.cpu),
    ]


def measure(
    server: Server, found: Beside, lengths: Sequence[int], n_generate: int, seed: int
) -> None:
    prompts = [tokens(n, seed + 10 * len(lengths) + i) for i, n in enumerate(lengths)]
    before = server.cpu_seconds
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: server.ask(prompt, n_generate), prompts))
    found.cpu.append(server.cpu_seconds - before)
    since = max(answer.times[0] for answer in answers)  # all prompts have been computed
    found.rates.append(sum(answer.rate for answer in answers))
    found.gaps.append(max(answer.longest_gap(since) for answer in answers))


def row(name: str, unit: str, off: Sequence[float], on: Sequence[float]) -> list[str]:
    medians = statistics.median(off), statistics.median(on)
    ratio = statistics.median(b / a for a, b in zip(off, on, strict=True))
    return [name, unit, f"{medians[0]:.2f}", f"{medians[1]:.2f} ({ratio:.3f} of it)", ""]
