"""Measures a start of the server: seconds until it is ready, and the memory that takes, and then an
answer of 32 tokens to a prompt of 200.

    python scripts/bench_start.py -m model.gguf            (compiled before)
    python scripts/bench_start.py -m model.gguf --cold     (into an empty cache)

Memory is what the server and the processes that compile for it have, pages that they share
counted once (PSS): of one more start, since counting a large process's pages keeps it from getting
more meanwhile (the 1.5B's start took a second longer). It is held against what it may be: when it
is ready and after the answer 1.1 x weights + KV cache + 250 MiB, while loading 1.25 x weights + KV
cache + 350 MiB. More is an error. What compiles for later batches after a first answer is waited
for. Every driver that is installed beside the one in use adds its libraries (PoCL 60 MiB):
OPENCL_VENDOR_PATH can name a folder with one .icd file. Linux only, and the only server that runs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 300.0
SAMPLE_SECONDS = 0.03
COMPILER = b"gguf_serve.kernels.opencl.compiling."
SETTLE_SECONDS = 1.0  # after the start and the answer, for what ends then
QUESTION = {"prompt": "Once upon a time. " * 40, "max_tokens": 32, "ignore_eos": True}
RESIDENT, PEAK = (1.1, 250), (1.25, 350)  # times the weights, and MiB beside KV cache
SIZES = re.compile(r": weights (\d+) MiB, KV cache (\d+) MiB")


@dataclass(frozen=True)
class Start:
    """MiB and seconds; ``processor`` is that of all processes together. ``peak``: 0 if the start
    was not watched."""

    ready: float
    processor: float
    resident: int
    peak: int
    answered: int
    weights: int
    kv: int
    log: str

    def excess(self, spare: int = 0) -> list[str]:
        """What takes more memory than it may, and ``spare`` MiB."""
        limits = [
            ("when ready", self.resident, RESIDENT),
            ("while loading", self.peak, PEAK),
            ("after an answer", self.answered, RESIDENT),
        ]
        return [
            f"{name}: {found} MiB, more than {most} MiB"
            for name, found, (factor, constant) in limits
            if found > (most := round(factor * self.weights + self.kv + constant + spare))
        ]


def descendants(pid: int) -> Iterator[int]:
    """A process and all that it has started, directly or not."""
    yield pid
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it, or a thread of it, has ended
        return
    for child in " ".join(lists).split():
        yield from descendants(int(child))


def memory(pid: int) -> int:
    """MiB of a process and its children, what several share counted once."""
    total = 0
    own = _command(pid)
    for one in descendants(pid):
        if one != pid and _command(one) == own:
            continue  # it is being started, and has no memory of its own yet
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        found = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
        total += int(found[1]) if found else 0
    return total >> 10


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def processor_seconds(pid: int) -> float:
    """Of a process, and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def start(
    model: Path, options: Sequence[str], cache: str | None = None, *, watched: bool = False
) -> Start:
    """Start the server and end it. RuntimeError with its log if it does not become ready.
    ``watched``: the most memory that it has at any time is found, which takes time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    serve = [sys.executable, "-m", "gguf_serve.server"]
    command = [*serve, "-m", str(model), "--port", str(port), *options]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling all modules is no part of a start
    environment |= {"XDG_CACHE_HOME": cache} if cache else {}
    with tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=log,
        )  # fmt: skip
        peak, ended = [0], threading.Event()

        def watch() -> None:
            while not ended.wait(SAMPLE_SECONDS):
                peak[0] = max(peak[0], memory(process.pid))

        watcher = threading.Thread(target=watch)
        if watched:
            watcher.start()
        try:
            is_ready = _wait(f"http://127.0.0.1:{port}/health", process, began + READY_SECONDS)
            ready = time.perf_counter() - began
            if is_ready:
                time.sleep(SETTLE_SECONDS)
                resident, seconds = memory(process.pid), processor_seconds(process.pid)
                ended.set()
                _ask(f"http://127.0.0.1:{port}/v1/completions")
                answered = _settled(process.pid)
        finally:
            ended.set()
            if watched:
                watcher.join()
            process.terminate()
            process.wait(30)
        log.seek(0)
        text = log.read()
    if not is_ready:
        raise RuntimeError(f"the server has not become ready:\n{text}")
    sizes = [tuple(map(int, found.groups())) for found in SIZES.finditer(text)]
    weights, kv = (sum(column) for column in zip(*sizes, strict=True))
    return Start(ready, seconds, resident, peak[0], answered, weights, kv, text)


def _wait(url: str, process: subprocess.Popen[bytes], until: float) -> bool:
    while process.poll() is None and time.perf_counter() < until:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(SAMPLE_SECONDS)
    return False


def _ask(url: str) -> None:
    body = json.dumps(QUESTION).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=READY_SECONDS) as answer:
        answer.read()


def _settled(pid: int) -> int:
    """MiB when nothing is being compiled any more."""
    until = time.perf_counter() + READY_SECONDS
    time.sleep(SETTLE_SECONDS)
    while any(COMPILER in _command(one) for one in descendants(pid)):
        if time.perf_counter() > until:
            raise RuntimeError("compiling has not ended")
        time.sleep(SETTLE_SECONDS)
    return memory(pid)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure a start of the server.")
    parser.add_argument("-m", "--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--cold", action="store_true", help="with nothing compiled")
    parser.add_argument("--repeat", type=int, default=3, help="starts (default 3)")
    parser.add_argument("options", nargs="*", help="the server's, after --")
    given = parser.parse_args()
    starts = [_start(given, watched=False) for _ in range(given.repeat)]
    times = sorted(found.ready for found in starts)
    print(f"ready after {times[len(times) // 2]:.2f} s in the median")
    found = _start(given, watched=True)
    print(
        f"resident {found.resident} MiB, while loading {found.peak} MiB, after an answer "
        f"{found.answered} MiB (weights {found.weights}, KV cache {found.kv})"
    )
    excess = found.excess()
    for each in excess:
        print(f"  {each}")
    return int(bool(excess))


def _start(given: argparse.Namespace, *, watched: bool) -> Start:
    with tempfile.TemporaryDirectory() as folder:
        cache = folder if given.cold else None
        found = start(given.model, given.options, cache, watched=watched)
    if not watched:
        loaded = re.search(r"loaded in +(.*)", found.log)
        print(
            f"ready after {found.ready:.2f} s ({found.processor:.2f} s of processors)"
            f"{f'; {loaded[1]}' if loaded else ''}"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
