"""The process that is Ray's driver: it starts the engines, and tells a front where they are.

Not the front itself, since Ray ends its driver when it has lost the cluster; a front goes on with
the engines that it knows, and starts this anew. It reads one pickled ``Wanted`` from its input and
writes JSON, an object a line: ``{"key": HEX}``, ``{"hosts": {ID: [HOST, PORT]}}`` when they have
changed, ``{"failure": TEXT}``. When its input ends, it leaves, and the last takes the engines with
it.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import secrets
import socket
import sys
import threading
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from msgspec import Struct

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.options import EngineOptions
from gguf_serve.server.replicas import deployment
from gguf_serve.server.version import VERSION

log = logging.getLogger(__name__)
LOOK_SECONDS = 2.0  # between two looks at where the engines are
ANSWER_SECONDS = 5.0  # that Ray has to tell it
SLOTS = 4  # of an engine that is told no number
EXTRA_SECONDS = 10.0  # beyond the drain timeout, in which an engine is to have ended
# Of a Ray that is started here. By its defaults its processes take 11 % of a core while nothing
# happens, and engines give way to all of them.
FRUGAL = {
    "RAY_worker_niceness": "0",
    "RAY_enable_metrics_collection": "0",  # engines and fronts have their own
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # it would kill engines where memory is short
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "0",  # of requests, which do not pass through it
}


class Wanted(Struct, frozen=True):
    """The engines of one model."""

    path: Path
    options: EngineOptions
    least: int
    most: int  # more than ``least``: as many as the requests need
    address: str | None  # of the cluster; None: one is started that only this machine reaches
    drain_timeout: int  # seconds
    key: bytes  # what fronts and hosts prove to each other, unless the cluster has one


class Cluster:
    """Ray, and the application of one model in it."""

    def __init__(self, wanted: Wanted) -> None:
        if wanted.address is None:  # read when Ray is imported, and by what it starts
            os.environ.update(FRUGAL)
        with deployment.importing_ray("--replicas", wanted.address):
            import ray
            from ray import serve
        self._ray, self._serve, self._wanted = ray, serve, wanted
        self._is_local = wanted.address is None
        self._front = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(4)}"
        self.name = f"gguf-serve {wanted.path.name}"
        self._begin()
        self._directory = ray.remote(num_cpus=0, max_restarts=-1)(deployment.Directory).options(
            name=f"{self.name} directory", namespace=deployment.NAMESPACE, get_if_exists=True,
            lifetime="detached",
        ).remote()  # fmt: skip
        self.key = self._shared_key()
        self._run()

    def _begin(self) -> None:
        """Connect to the cluster, or start one that only this machine reaches."""
        where: dict[str, Any] = {"address": self._wanted.address}
        if self._is_local:
            where = {
                "address": "local",
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
            }
        try:
            self._ray.init(
                namespace=deployment.NAMESPACE, logging_level=logging.WARNING, log_to_driver=False,
                **where,
            )  # fmt: skip
        except Exception as error:
            raise EngineError(f"Ray cannot be reached or started: {error}") from error
        self._serve.start(proxy_location="Disabled")

    def _shared_key(self) -> bytes:
        """The key of the first front."""
        return bytes(self._ray.get(self._directory.key.remote(self._wanted.key), timeout=60))

    def _run(self) -> None:
        """Deploy, or change what is deployed; Ray replaces engines one after the other."""
        wanted = self._wanted
        least, most, options = wanted.least, wanted.most, wanted.options
        slots = options.n_parallel if options.n_parallel > 0 else SLOTS
        scale: dict[str, Any] = {"num_replicas": least}
        if most > least:
            scale = {"autoscaling_config": {
                "min_replicas": least, "max_replicas": most, "target_ongoing_requests": slots,
                "policy": {"policy_function": deployment.wanted_replicas},
                "upscale_delay_s": 2, "downscale_delay_s": 60,
            }}  # fmt: skip
        made = self._serve.deployment(deployment.EngineReplica).options(
            name="engine", max_ongoing_requests=1000,
            ray_actor_options={"num_cpus": 0 if self._is_local else 1},
            health_check_period_s=2, health_check_timeout_s=10,
            graceful_shutdown_timeout_s=wanted.drain_timeout + EXTRA_SECONDS,
            graceful_shutdown_wait_loop_s=0.2, **scale,
            # Else Serve makes one up, and each front that comes has all engines replaced.
            version=self._version(), _internal=True,
        )  # fmt: skip
        bound = made.bind(
            wanted.path.absolute(), options, self.key, f"{self.name} directory",
            float(wanted.drain_timeout), self._is_local,
        )  # fmt: skip
        self._serve.run_many(
            [self._serve.RunTarget(bound, self.name, route_prefix=None)],
            wait_for_ingress_deployment_creation=False, wait_for_applications_running=False,
        )  # fmt: skip

    def _version(self) -> str:
        """Of what engines are started with: those of another one are replaced."""
        wanted = self._wanted
        n_bytes = wanted.path.stat().st_size
        told = VERSION, wanted.path.absolute(), n_bytes, wanted.options, wanted.drain_timeout
        return blake2b(repr(told).encode(), digest_size=8).hexdigest()

    def hosts(self) -> dict[str, tuple[str, int]]:
        return dict(
            self._ray.get(self._directory.hosts.remote(self._front), timeout=ANSWER_SECONDS)
        )

    def failure(self) -> str | None:
        """Why no engine will come, if Ray has given up."""
        found = self._serve.status().applications.get(self.name)
        return str(found.message) if found and found.status == "DEPLOY_FAILED" else None

    def leave(self) -> None:
        """The last front takes the engines with it."""
        with suppress(Exception):
            is_last = self._ray.get(
                self._directory.leave_front.remote(self._front), timeout=ANSWER_SECONDS
            )
            if is_last:
                self._serve.delete(self.name, _blocking=True)
                self._ray.kill(self._directory)
            if self._is_local:
                self._serve.shutdown()
        self._ray.shutdown()


def tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main() -> int:
    wanted: Wanted = pickle.load(sys.stdin.buffer)
    ended = threading.Event()

    def watch() -> None:
        # Not by sys.stdin, whose lock a thread that still reads would keep when this process ends.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    try:
        cluster = Cluster(wanted)
    except EngineError as error:
        tell({"failure": str(error)})
        return 1
    tell({"key": cluster.key.hex()})
    known: dict[str, tuple[str, int]] | None = None
    while not ended.wait(LOOK_SECONDS):
        with suppress(Exception):  # Ray starts what is missing
            hosts = cluster.hosts()
            if hosts != known:
                tell({"hosts": hosts})
                known = hosts
            if not hosts and (failure := cluster.failure()) is not None:
                tell({"failure": f"no engine can be started: {failure}"})
    cluster.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
