"""What generation costs through two stages: a model in one process and in two, by turns.

    python scripts/bench_stages.py MODEL.gguf --delay 0.2

``--delay`` is the link's, in milliseconds each way, by proxies between the processes, which take
0.1 more by themselves. The texts of both must be the same.
"""

from __future__ import annotations

import argparse
import queue
import socket
import statistics
import threading
import time
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from bench_engine import GREEDY, Run

from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Request
from gguf_serve.server.pipeline.start import Processes
from gguf_serve.server.pipeline.wire import Address, ChannelWire, lead

PROMPT = 40  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--delay", type=float, default=0.0, help="milliseconds each way")
    parser.add_argument("--tokens", type=int, default=32, help="of each stream in a turn")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--turns", type=int, default=6)
    given = parser.parse_args()
    path, options = given.model.absolute(), EngineOptions(n_ctx=2048, n_parallel=4)
    engines = {
        "one process": load_engine(path, options),
        "two stages": load_engine(path, options, connect=partial(connect, given.delay / 1e3)),
    }
    found: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(given.turns + 1):  # the first one warms up
        texts = {}
        for name, engine in engines.items():
            seconds, texts[name] = generate(engine, given.tokens, given.streams, turn)
            if turn:
                found[name].append(1e3 * seconds)
        assert len(set(map(str, texts.values()))) == 1, "the texts are not the same"
    for name, times in found.items():
        print(f"{name}: {statistics.median(times):.1f} ms a token "
              f"({', '.join(f'{each:.1f}' for each in times)})")  # fmt: skip
    one, two = (statistics.median(times) for times in found.values())
    print(f"through two stages {100 * (two / one - 1):+.1f} %")
    for engine in engines.values():
        engine.close()


def generate(engine: Engine, n: int, n_streams: int, turn: int) -> tuple[float, list[list[int]]]:
    """Seconds between two tokens of all streams, and the tokens."""
    runs = []
    for i in range(n_streams):
        first = 1000 + PROMPT * (i + n_streams * turn)
        runs.append(Run(Request(tuple(range(first, first + PROMPT)), GREEDY, n)))
        engine.submit(runs[-1].request, runs[-1].on_event)
    for run in runs:
        run.done.wait()
        assert not run.failure, run.failure
    begin, end = min(run.times[0] for run in runs), max(run.times[-1] for run in runs)
    return (end - begin) / (n_streams * (n - 1)), [run.tokens for run in runs]


def connect(delay: float) -> list[ChannelWire]:
    """Start a stage, behind a proxy if there is to be a delay of so many seconds."""
    processes = Processes(1, None)
    addresses = processes.addresses()
    return lead([behind(each, delay) if delay else each for each in addresses],
                processes.key, processes.end)  # fmt: skip


def behind(address: Address, delay: float) -> Address:
    """Where a proxy of an address listens, a process of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    get_context("fork").Process(target=proxy, args=(listener, address, delay), daemon=True).start()
    host, port = listener.getsockname()[:2]
    listener.close()
    return host, port


def proxy(listener: socket.socket, address: Address, delay: float) -> None:
    near, _ = listener.accept()
    far = socket.create_connection(address)
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=carry, args=(near, far, delay), daemon=True).start()
    carry(far, near, delay)


def carry(source: socket.socket, target: socket.socket, delay: float) -> None:
    """All bytes, each after so many seconds, until the source ends."""
    due: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

    def send() -> None:
        with suppress(OSError):
            while True:
                at, data = due.get()
                time.sleep(max(at - time.monotonic(), 0.0))
                target.sendall(data) if data else target.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    data = b" "
    while data:
        data = source.recv(1 << 20)
        due.put((time.monotonic() + delay, data))


if __name__ == "__main__":
    main()
