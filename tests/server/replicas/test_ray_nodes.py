"""A cluster of several nodes: changed while it serves, and with a link that is cut for a while."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from four_dialects import many
from ray_nodes import Link, Node, can_have_namespaces
from ray_server import Server

pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def traffic(server: Server) -> Iterator[None]:
    """Requests in all dialects meanwhile, some at once, whose texts must be as they are alone."""
    asked = many(16, 60)
    alone = server.ask_all(asked)
    ended, failures = threading.Event(), list[BaseException]()

    def load() -> None:
        try:
            while not ended.is_set():
                assert server.ask_all(asked) == alone
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not failures, failures


def test_engines_are_changed_under_traffic(stack: ExitStack) -> None:
    """2 -> 1 -> 2, and all replaced one after the other, by other fronts of the same cluster."""
    head = f"127.0.0.1:{free_port()}"
    node = Node("127.0.0.1", head, 8)
    stack.callback(node.close)

    def front(*options: str) -> Server:
        server = Server(
            "--ray-address", head, "--drain-timeout", "20", *options, roots=[node.process.pid]
        )
        stack.callback(server.close)
        return server

    server = front("--replicas", "2")
    server.wait_for_slots(8)
    with traffic(server):
        both = set(server.engines())
        front("--replicas", "1").close()
        server.wait_for_slots(4)
        front("--replicas", "2").close()
        server.wait_for_slots(8)
        before = set(server.engines())
        assert len(before & both) == 1  # who stays is not started anew
        front("--replicas", "2", "-c", "3072").close()
        server.wait(lambda: len(set(server.engines()) - before) == 2)
        server.wait_for_slots(8)
        server.wait(lambda: not before & set(server.engines()))


@pytest.mark.skipif(not can_have_namespaces(), reason="no network namespaces can be made")
def test_a_link_is_cut_for_a_while(stack: ExitStack) -> None:
    """Two nodes in two network namespaces with an engine each."""
    link = Link()
    stack.callback(link.close)
    head = f"{link.here}:{free_port()}"
    nodes = [Node(link.here, head, 1)]
    stack.callback(nodes[0].close)
    nodes.append(Node(link.there, head, 1, link.command))
    stack.callback(nodes[1].close)
    server = Server(
        "--replicas", "2", "--ray-address", head, roots=[node.process.pid for node in nodes]
    )
    stack.callback(server.close)
    server.wait_for_slots(8)
    asked = many(8, 200)
    alone = server.ask_all(asked)
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.extend(server.ask_all(asked)))
    thread.start()
    server.wait(lambda: server.metric("llamacpp:requests_processing") >= 4)
    link.cut()
    server.wait(lambda: server.metric("llamacpp:engines") == 1, 5)  # new work goes elsewhere
    thread.join()
    assert answers == alone
    assert server.metric("llamacpp:requests_moved_total") > 0
    link.mend()
    server.wait(lambda: server.metric("llamacpp:engines") == 2)
    assert server.ask_all(asked) == alone
