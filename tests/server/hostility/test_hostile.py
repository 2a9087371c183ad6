"""Nothing that a client sends stops the others: each row of hostile_rows.py against a server.

What a server takes at rest is measured once, for all of its rows. A row that fails is measured
anew, rest and all, since the machine that runs this may be busy itself.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import model_shapes
import pytest
import synthetic_model
from hostile import Row, Seen, Send, Server
from hostile_rows import ROWS

from gguf_serve.engine.engine import list_devices

SHAPE = model_shapes.llama(layers=4, embd=512, heads=8, kv_heads=2, ff=1024, vocab=20000)
TRIES = 3

Start = Callable[[tuple[str, ...]], Server]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Servers by their options; the same one for all rows that have the same."""
    if not list_devices():
        pytest.skip("there is no OpenCL device")
    folder = tmp_path_factory.mktemp("hostile")
    model = folder / "synthetic.gguf"
    synthetic_model.write_model(model, SHAPE)
    servers: dict[tuple[str, ...], Server] = {}

    def server(args: tuple[str, ...]) -> Server:
        if args not in servers or not servers[args].is_alive:
            for other in servers.values():  # one at a time: they share the cores
                other.close()
            servers.clear()
            servers[args] = Server(model, args, folder / f"{len(args)}.log")
        return servers[args]

    yield server
    for one in servers.values():
        one.close()


def params() -> list[object]:
    return [
        pytest.param(
            row,
            id=row.name,
            marks=[
                *([pytest.mark.slow] if row.slow else []),
                *([pytest.mark.skip(reason=f"awaits {row.awaits}")] if row.awaits else []),
            ],
        )
        for row in ROWS
    ]


def test_the_watch_sees_a_server_that_stands_still(start: Start) -> None:
    server = start(())
    idle = server.at_rest(anew=False)
    began = time.monotonic()
    os.kill(server.pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(server.pid, signal.SIGCONT)
    seen = server.seen_since(began)
    usual = Seen(0.01, 0.02, 0.01, idle.memory)  # whatever the machine did in that time
    health, gap = seen.faults(usual, Row("a stop", ()))
    assert re.match(r"/health took [1-9]", health)
    assert re.match(r"a stream's gap of [1-9]", gap)


@pytest.mark.parametrize("row", params())
def test_others_are_served_meanwhile(start: Start, row: Row) -> None:
    reports = []
    for n in range(TRIES):
        faults, report = attempt(start(row.args), row, anew=n > 0)
        if not faults:
            return
        reports.append(f"{'; '.join(faults)}\n    {report}")
    pytest.fail(f"{row.name}:\n" + "\n".join(reports))


def attempt(server: Server, row: Row, *, anew: bool = False) -> tuple[list[str], str]:
    """What is beyond the bars, and all figures; ``anew``: measured against a rest just before."""
    idle = server.at_rest(anew=anew)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as beside:
        probe = beside.submit(probed, server, row)
        wrong = attack(server, row)
        took = probe.result()
    seen = server.seen_since(began)
    seen.probe = took
    assert server.is_alive, f"{row.name} has ended the server: {server.log.read_text()[-2000:]}"
    return wrong + seen.faults(idle, row), f"idle {shown(idle)}; meanwhile {shown(seen)}"


def probed(server: Server, row: Row) -> float:
    """Seconds that a short request of another client takes."""
    if not row.probe:
        return 0.0
    time.sleep(1.0)  # until the attack has got all slots
    began = time.monotonic()
    status = server.post(row.asked, "polite")
    return time.monotonic() - began if status == 200 else float("inf")


def attack(server: Server, row: Row) -> list[str]:
    """The statuses that were not expected."""
    if callable(row.attack):
        row.attack(server)
        return []
    wrong: list[str] = []

    def post(send: Send) -> None:
        status = server.post(send)
        if status not in (send.expected or (0,)):
            wrong.append(f"{send.path} was answered with {status}, expected {send.expected}")

    for send in row.attack:
        threads = [threading.Thread(target=post, args=(send,)) for _ in range(send.times)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return wrong


def shown(seen: Seen) -> str:
    return (
        f"/health {seen.health:.3f} s, gap {seen.gap:.3f} s (usual {seen.usual_gap:.3f} s), "
        f"{seen.memory / 2**20:.0f} MiB, a short request {seen.probe:.1f} s"
    )


def test_the_bars_are_seen_to_be_passed() -> None:
    """The figures, were they bad, would fail a row."""
    row = Row("a row", (), probe=2.0)
    idle = Seen(0.01, 0.02, 0.01, 2**29)
    assert Seen(0.2, 0.5, 0.0, 2**29 + 2**28, 1.9).faults(idle, row) == []
    found = Seen(0.3, 0.6, 0.0, 2**30 + 2**28, 2.1).faults(idle, row)
    assert [fault.split()[0] for fault in found] == ["/health", "a", "768", "a"]
