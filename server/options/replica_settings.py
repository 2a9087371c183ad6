"""Options of several engines behind one server, and of how a server ends. A part of Settings."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_serve.engine.option import COUNT, NATURAL, TEXT, Parsed, option
from gguf_serve.engine.option_values import replica_counts

REPLICAS = "Replicas"


# fmt: off
@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    replicas: tuple[int, int] | None = option(
        "--replicas", group=REPLICAS, type=Parsed("N|LEAST:MOST", replica_counts), default=None,
        help="engines in processes of their own, placed and restarted by Ray; of two numbers, as "
        "many as the requests need",
    )
    pipeline: int = option(
        "--pipeline", group=REPLICAS, type=COUNT, default=1,
        help="share the layers of a model out to so many machines of the Ray cluster, this one "
        "among them; without --ray-address to as many processes of this machine",
    )
    ray_address: str | None = option(
        "--ray-address", group=REPLICAS, type=TEXT, metavar="HOST:PORT", default=None,
        help="the Ray cluster for both; without it --replicas starts one on this machine",
    )
    drain_timeout: int = option(
        "--drain-timeout", group=REPLICAS, type=NATURAL, default=0,
        help="seconds that open requests have to end after SIGTERM, while new ones are refused",
    )
# fmt: on
