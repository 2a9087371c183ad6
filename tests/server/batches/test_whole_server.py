"""A thousand requests beside chats, with the server killed in between. Needs the demo model."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

pytestmark = pytest.mark.slow
N = 1000
SECONDS = 60.0  # until the server is there


class Server:
    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gguf_serve.server.cli", "--demo", "--port", str(port),
             "-np", "4", "-c", "2048", "--batch-path", str(folder), "-lv", "2"],
        )  # fmt: skip
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
        until = time.monotonic() + SECONDS
        while not self.is_there():
            assert self.process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)

    def is_there(self) -> bool:
        try:
            return httpx.get(self.url + "/health").status_code == 200
        except httpx.HTTPError:
            return False


def chats(server: Server, until: threading.Event) -> Iterator[float]:
    """The gaps between the chunks of chats, with a pause after each chat."""
    while not until.is_set():
        stream = server.client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Count from one to thirty."}],
            stream=True, max_tokens=40,
        )  # fmt: skip
        times = [time.perf_counter() for _ in stream]
        yield from (b - a for a, b in pairwise(times[1:]))
        until.wait(1.5)


def done(server: Server, id: str, n: int) -> Any:
    while True:
        batch = server.client.batches.retrieve(id)
        if batch.status not in ("validating", "in_progress", "finalizing"):
            return batch
        if n and batch.request_counts.completed >= n:
            return batch
        time.sleep(0.1)


@pytest.mark.timeout(900)
def test_a_thousand_requests_and_a_kill(tmp_path: Path) -> None:
    server = Server(tmp_path)
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"messages": [{"role": "user", "content": f"What is {i} + 1?"}],
                  "max_tokens": 4, "temperature": 0}}
        for i in range(N)
    ]  # fmt: skip
    given = "\n".join(map(json.dumps, lines)).encode()
    file = server.client.files.create(file=("in.jsonl", given), purpose="batch")
    alone, beside = list[float](), list[float]()
    stop = threading.Event()
    talk = threading.Thread(target=lambda: alone.extend(chats(server, stop)))
    talk.start()
    time.sleep(12)
    stop.set()
    talk.join()
    batch = server.client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    stop = threading.Event()
    talk = threading.Thread(target=lambda: beside.extend(chats(server, stop)))
    talk.start()
    done(server, batch.id, N // 4)
    stop.set()
    talk.join()
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    server = Server(tmp_path)
    batch = done(server, batch.id, 0)
    server.process.terminate()
    alone.sort()
    beside.sort()
    for name, gaps in (("alone", alone), ("beside a batch", beside)):
        print(f"{name}: {len(gaps)} gaps, median {1e3 * gaps[len(gaps) // 2]:.1f} ms, "
              f"p95 {1e3 * gaps[len(gaps) * 95 // 100]:.1f} ms")  # fmt: skip
    counts = batch.request_counts
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", N, N, 0)
    written = (tmp_path / batch.output_file_id).read_text().splitlines()
    answers = [json.loads(one) for one in written]
    assert len(answers) == N
    assert {one["custom_id"] for one in answers} == {f"r{i}" for i in range(N)}
    assert all(one["response"]["status_code"] == 200 for one in answers)
    assert server.process.wait(30) == 0
