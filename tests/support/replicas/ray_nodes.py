"""Nodes of a Ray cluster, as an operator starts them, one of them behind a link of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gguf_serve.server.replicas.ray_cluster import FRUGAL

SECONDS = 60.0


class Node:
    """``ray start``, until it is closed."""

    def __init__(self, host: str, head: str, n_cpus: int, command: Sequence[str] = ()) -> None:
        """``host``: its address; ``head``: HOST:PORT, where another node is unless it is this one's
        own. ``command``: what comes before Python's."""
        self._folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # sockets want short paths
        at, _, port = head.partition(":")
        is_head = at == host
        where = (
            ["--head", "--port", port, "--include-dashboard", "false", "--temp-dir", self._folder]
            if is_head else ["--address", head]
        )  # fmt: skip
        self.process = subprocess.Popen(
            [*command, str(Path(sys.executable).parent / "ray"), "start", *where, "--block",
             "--node-ip-address", host, "--num-cpus", str(n_cpus), "--disable-usage-stats",
             "--include-log-monitor", "false"],
            env=os.environ | FRUGAL | {"RAY_AUTH_MODE": "token"}, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        if is_head:
            self._wait_for(host, int(port))

    def _wait_for(self, host: str, port: int) -> None:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            assert self.process.poll() is None
            try:
                socket.create_connection((host, port), 1).close()
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise AssertionError(f"nobody listens at {host}:{port}")

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)  # Ray drains a node for 30
        except subprocess.TimeoutExpired:
            self.process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


class Link:
    """A network namespace with an address, and a link to it that can be cut. Needs root."""

    def __init__(self) -> None:
        net = f"10.213.{os.getpid() % 256}"
        self.here, self.there = f"{net}.1", f"{net}.2"
        self._name = f"gs{os.getpid()}"
        self._ends = f"{self._name}a", f"{self._name}b"
        self.command = ["ip", "netns", "exec", self._name]
        a, b = self._ends
        ip("netns", "add", self._name)
        ip("link", "add", a, "type", "veth", "peer", "name", b, "netns", self._name)
        ip("address", "add", f"{self.here}/30", "dev", a)
        ip("link", "set", a, "up")
        ip("-n", self._name, "address", "add", f"{self.there}/30", "dev", b)
        for device in (b, "lo"):
            ip("-n", self._name, "link", "set", device, "up")

    def cut(self) -> None:
        ip("link", "set", self._ends[0], "down")

    def mend(self) -> None:
        ip("link", "set", self._ends[0], "up")

    def close(self) -> None:
        ip("netns", "delete", self._name)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def can_have_namespaces() -> bool:
    return (
        os.geteuid() == 0
        and shutil.which("ip") is not None
        and subprocess.run(["unshare", "-n", "true"], check=False).returncode == 0
    )
