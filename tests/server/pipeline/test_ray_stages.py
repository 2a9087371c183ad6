"""A model on two machines that Ray has, which are two network namespaces here."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest
from ray_nodes import Link, Node, can_have_namespaces
from ray_server import Server

pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
PROMPT = "The history of the city begins"
GREEDY = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0}


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


def test_a_stage_on_another_machine(link: Link) -> None:
    """The text is that of one process; with the link down it ends in an error, and health tells."""
    alone = Server()
    expected = httpx.post(alone.url + "/v1/completions", json=GREEDY, timeout=180).json()
    end(alone)
    with socket.create_server((link.here, 0)) as free:
        head = f"{link.here}:{free.getsockname()[1]}"
    nodes = [Node(link.here, head, 1), Node(link.there, head, 1, link.command)]
    try:
        server = Server("--pipeline", "2", "--ray-address", head)
        found = httpx.post(server.url + "/v1/completions", json=GREEDY, timeout=180).json()
        assert found["choices"][0]["text"] == expected["choices"][0]["text"]
        link.cut()
        lost = httpx.post(server.url + "/v1/completions", json=GREEDY, timeout=180)
        assert lost.status_code == 500
        assert "is gone" in lost.json()["error"]["message"]
        assert httpx.get(server.url + "/health").status_code == 503
        end(server)
    finally:
        for node in nodes:
            node.close()
