"""A model on two machines that Ray has, which are two network namespaces here."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from ray_nodes import Link, Node, can_have_namespaces
from ray_server import Server, descendants

pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
PROMPT = "The history of the city begins"
GREEDY = {"prompt": PROMPT, "max_tokens": 200, "temperature": 0}


@pytest.fixture
def link() -> Iterator[Link]:
    if not can_have_namespaces():
        pytest.skip("network namespaces need root")
    made = Link()
    yield made
    made.close()


def end(server: Server) -> None:
    server.process.terminate()
    assert server.process.wait(60) == 0


def is_stage(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::StageActor")
    except OSError:
        return False


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def test_a_stage_on_another_machine(link: Link) -> None:
    """The text is that of one process, though the stage is killed in its middle; with the link
    down for a while, health tells, and what was served goes on or ends in an error."""
    alone = Server()
    expected = text(httpx.post(alone.url + "/v1/completions", json=GREEDY, timeout=180))
    end(alone)
    with socket.create_server((link.here, 0)) as free:
        head = f"{link.here}:{free.getsockname()[1]}"
    nodes = [Node(link.here, head, 1), Node(link.there, head, 1, link.command)]
    try:
        server = Server("--pipeline", "2", "--ray-address", head)

        def ask() -> httpx.Response:
            return httpx.post(server.url + "/v1/completions", json=GREEDY, timeout=400)

        def is_well(status: int) -> bool:
            return httpx.get(server.url + "/health").status_code == status

        assert text(ask()) == expected
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask)
            server.wait(lambda: server.metric("llamacpp:requests_processing") > 0)
            (stage,) = filter(is_stage, descendants(nodes[1].process.pid))
            os.kill(stage, signal.SIGKILL)
            server.wait(lambda: is_well(503), 10)
            assert text(asked.result()) == expected
            assert is_well(200)
            link.cut()
            asked = pool.submit(ask)
            server.wait(lambda: is_well(503), 60)
            link.mend()
            found = asked.result()
        assert "is gone" in found.text if found.status_code == 500 else text(found) == expected
        end(server)
    finally:
        for node in nodes:
            node.close()
