"""What runs in Ray's actors: an engine behind a host, and the list of where the hosts are.

Ray Serve starts, watches, replaces and scales the engines. Requests do not pass through it: a
stream of its own takes 1 ms of processors for each token, and tells nobody that it was cut.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gguf_serve.engine.engine import load_engine
from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.options import EngineOptions
from gguf_serve.server.replicas.host import Host

log = logging.getLogger(__name__)
ENTER_SECONDS = 3.0  # between two entries of a host in the list
STALE_SECONDS = 10.0  # after which one that has not entered is not there
LOAD = "requests"  # what engines tell the autoscaling
NAMESPACE = "gguf-serve"
Address = tuple[str, int]


@contextmanager
def importing_ray(option: str, address: str | None) -> Iterator[None]:
    """Import Ray inside, for the cluster at ``address`` or one of its own. Raises EngineError, by
    which ``option`` needs it, if it is not installed."""
    if address is not None:  # of itself Ray asks for a token only where it starts a cluster
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        yield
    except ImportError:
        raise EngineError(
            f"{option} needs Ray: pip install 'gguf-serve[cpu,ray]', and call the server by its "
            "other name, gguf-serve, since Ray has a command serve too"
        ) from None


class Directory:
    """Where the hosts and the fronts are. An actor that Ray starts anew if it is lost: then all
    enter again."""

    def __init__(self) -> None:
        self._hosts: dict[str, tuple[Address, float]] = {}
        self._fronts: dict[str, float] = {}
        self._key: bytes | None = None

    def key(self, made: bytes) -> bytes:
        """What all prove to each other: the first that somebody has made."""
        self._key = self._key or made
        return self._key

    def enter(self, id: str, address: Address, key: bytes) -> None:
        self.key(key)
        self._hosts[id] = address, time.monotonic()

    def leave(self, id: str) -> None:
        self._hosts.pop(id, None)

    def hosts(self, front: str) -> dict[str, Address]:
        """For a front, which is there itself then."""
        now = self._fronts[front] = time.monotonic()
        return {id: at for id, (at, seen) in self._hosts.items() if now - seen < STALE_SECONDS}

    def leave_front(self, front: str) -> bool:
        """Whether it was the last."""
        self._fronts.pop(front, None)
        now = time.monotonic()
        return not any(now - seen < STALE_SECONDS for seen in self._fronts.values())


class EngineReplica:
    """A deployment of Ray Serve: one engine, and the host that fronts talk to."""

    def __init__(
        self, path: Path, options: EngineOptions, key: bytes, directory: str, drain_timeout: float,
        is_local: bool,
    ) -> None:  # fmt: skip
        """``directory``: its actor's name; ``is_local``: all fronts are on this machine."""
        import ray
        from ray import serve

        self._engine = load_engine(path, options)
        address = "127.0.0.1" if is_local else ray.util.get_node_ip_address()
        self._host = Host(self._engine, (address, 0), key)
        self._id = serve.get_replica_context().replica_id.unique_id
        self._key, self._directory, self._drain_timeout = key, directory, drain_timeout
        self._ended = threading.Event()
        threading.Thread(target=self._enter, name="directory", daemon=True).start()

    def _enter(self) -> None:
        import ray

        while not self._ended.is_set():
            try:
                directory = ray.get_actor(self._directory, namespace=NAMESPACE)
                directory.enter.remote(self._id, self._host.address, self._key)
            except Exception as error:  # it comes back, or the cluster goes
                log.debug("the directory cannot be reached: %s", error)
            self._ended.wait(ENTER_SECONDS)

    def check_health(self) -> None:
        """Ray asks; one that is not healthy is replaced."""
        if not self._engine.healthy:
            raise RuntimeError(self._engine.fault or "the engine has ended")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray asks, for ``wanted_replicas``."""
        stats = self._engine.stats()
        return {LOAD: float(stats.n_processing + stats.n_deferred)}

    def __del__(self) -> None:
        """Ray ends this replica: its requests have some time, and then go on elsewhere."""
        import ray

        self._ended.set()
        self._host.drain()
        until = time.monotonic() + self._drain_timeout
        while self._host.n_requests and time.monotonic() < until:
            time.sleep(0.1)
        ray.get_actor(self._directory, namespace=NAMESPACE).leave.remote(self._id)
        self._host.close()
        self._engine.close()


def wanted_replicas(context: Any) -> tuple[int, dict[str, Any]]:
    """Ray Serve's autoscaling policy: engines for all requests that are served or wait, each with
    as many as it has slots (``target_ongoing_requests``); one less at a time, when all the others
    would have slots to spare."""
    loads: Mapping[Any, float] = context.aggregated_metrics.get(LOAD, {})
    slots = float(context.config.target_ongoing_requests)
    wanted = max(math.ceil(sum(loads.values()) / slots), 1)
    if wanted < context.target_num_replicas:
        wanted = context.target_num_replicas - 1
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return min(max(wanted, least), most), {}
