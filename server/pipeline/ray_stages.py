"""The process that is Ray's driver for stages: it starts an actor on each of as many machines.

It reads a pickled tuple of the cluster's address, the number of stages and their key from its
input, writes ``{"stages": [[HOST, PORT], ...]}`` or ``{"failure": TEXT}`` to its output, and ends
the actors when its input ends.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import socket
import sys
import threading
import time
from typing import Any

from gguf_serve.engine.errors import EngineError
from gguf_serve.server.pipeline.stage import run_stage
from gguf_serve.server.replicas.deployment import NAMESPACE, importing_ray

START_SECONDS = 120.0  # that machines have to join, and actors to start
LOOK_SECONDS = 0.5  # between two looks at which have joined


class StageActor:
    """A stage on the machine where Ray puts it."""

    def __init__(self, key: bytes) -> None:
        import ray

        self._listener = socket.create_server((ray.util.get_node_ip_address(), 0))
        threading.Thread(target=run_stage, args=(self._listener, key), daemon=True).start()

    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()[:2]
        return host, port


def start_actors(ray: Any, n: int, key: bytes) -> list[Any]:
    """A stage on each of ``n`` machines that are not this one; EngineError if there are fewer after
    a while."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    until = time.monotonic() + START_SECONDS
    while len(nodes := other_nodes(ray, own)) < n:
        if time.monotonic() > until:
            raise EngineError(
                f"--pipeline {n + 1} needs {n} machines beside this one, the Ray cluster has "
                f"{len(nodes)}"
            )
        time.sleep(LOOK_SECONDS)
    made = ray.remote(num_cpus=1)(StageActor)
    there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes[:n]]
    return [made.options(scheduling_strategy=each).remote(key) for each in there]


def other_nodes(ray: Any, own: str) -> list[str]:
    """The machines of the cluster but for this one, by their ids."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]


def main() -> int:
    address, n, key = pickle.load(sys.stdin.buffer)
    try:
        with importing_ray("--ray-address", address):
            import ray
        ray.init(
            address=address, namespace=NAMESPACE, logging_level=logging.WARNING,
            log_to_driver=False,
        )  # fmt: skip
        actors = start_actors(ray, n, key)
        stages = ray.get([actor.address.remote() for actor in actors], timeout=START_SECONDS)
    except EngineError as error:
        return fail(str(error))
    except Exception as error:
        return fail(f"Ray cannot be reached, or cannot start the stages: {error}")
    print(json.dumps({"stages": stages}), flush=True)
    while os.read(sys.stdin.fileno(), 4096):
        pass
    for actor in actors:
        ray.kill(actor)
    ray.shutdown()
    return 0


def fail(reason: str) -> int:
    print(json.dumps({"failure": reason}), flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
