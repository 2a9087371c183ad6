"""The files of docs/balancers do what they say: before two servers, by the balancers themselves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "balancers"
SCRIPT = ROOT / "tests" / "support" / "scripted_serve.py"
COMMANDS = {
    "haproxy.cfg": ["haproxy", "-db", "-f"],
    "nginx.conf": ["nginx", "-g", "daemon off; pid balancer.pid;", "-p", ".", "-c"],
}
SECONDS = 30.0


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Behind:
    """Two servers with a balancer before them."""

    def __init__(self, name: str, folder: Path) -> None:
        front, *ports = free_ports(3)
        self.url = f"http://127.0.0.1:{front}"
        model = folder / "model.gguf"
        model.write_bytes(b"GGUF" + bytes(100))
        self.servers = {
            alias: subprocess.Popen(
                [sys.executable, str(SCRIPT), "-m", str(model), "--port", str(port),
                 "--alias", alias, "--drain-timeout", "20"],
                stderr=subprocess.DEVNULL,
            )
            for alias, port in zip(("one", "two"), ports, strict=True)
        }  # fmt: skip
        text = (FOLDER / name).read_text(encoding="utf-8")
        for written, port in zip((8000, 8081, 8082), (front, *ports), strict=True):
            assert str(written) in text
            text = text.replace(f"127.0.0.1:{written}", f"127.0.0.1:{port}")
        (folder / name).write_text(text, encoding="utf-8")
        self._ports = ports
        self.balancer = subprocess.Popen([*COMMANDS[name], str(folder / name)], cwd=folder)

    def begin(self) -> None:
        for port in self._ports:
            wait_for(f"http://127.0.0.1:{port}/health")
        wait_for(self.url + "/health")

    def served_by(self, session: str = "") -> str:
        """Who begins to answer a stream."""
        with self.stream(session) as answer:
            return self.first(answer)

    def stream(self, session: str = ""):  # type: ignore[no-untyped-def]
        headers = {"x-session-id": session} if session else {}
        body = {"prompt": "a", "stream": True}
        url = self.url + "/v1/completions"
        return httpx.stream("POST", url, json=body, headers=headers, timeout=SECONDS)

    def first(self, answer: httpx.Response) -> str:
        assert answer.status_code == 200, answer.read()
        line = next(line for line in answer.iter_lines() if line.startswith("data: {"))
        return str(json.loads(line.removeprefix("data: "))["model"])

    def close(self) -> None:
        for process in (self.balancer, *self.servers.values()):
            process.kill()
            process.wait()


def wait_for(url: str) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"{url} does not answer")


@pytest.fixture(params=COMMANDS)
def behind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Behind]:
    program = COMMANDS[request.param][0]
    if shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin") is None:
        pytest.skip(f"{program} is not installed")
    made = Behind(request.param, tmp_path)
    try:
        made.begin()
        yield made
    finally:
        made.close()


@pytest.mark.slow
def test_sessions_stay_and_a_lost_server_is_not_noticed(behind: Behind) -> None:
    where = {f"s{i}": behind.served_by(f"s{i}") for i in range(12)}
    assert set(where.values()) == {"one", "two"}
    for session, server in where.items():
        assert behind.served_by(session) == server
    assert {behind.served_by() for _ in range(12)} == {"one", "two"}
    behind.servers["one"].kill()
    assert {behind.served_by(session) for session in where} == {"two"}
    assert {behind.served_by() for _ in range(6)} == {"two"}


@pytest.mark.slow
def test_a_draining_server_gets_nothing_new(behind: Behind) -> None:
    session = next(f"s{i}" for i in range(40) if behind.served_by(f"s{i}") == "one")
    with behind.stream(session) as answer:
        lines = answer.iter_lines()
        assert any('"model":"one"' in line.replace(": ", ":") for line in lines)
        behind.servers["one"].send_signal(signal.SIGTERM)
        time.sleep(2)
        assert {behind.served_by(f"s{i}") for i in range(12)} == {"two"}
        assert sum(1 for _, line in zip(range(20), lines, strict=False) if line) >= 10
    assert behind.servers["one"].wait(SECONDS) == 0


def test_kubernetes_manifests_fit_their_schema() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    yaml = pytest.importorskip("yaml")
    documents = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text("utf-8")))
    assert len(documents) == 4
    for document in documents:
        validate.validate(document, validate.latest_version(), strict=True)
