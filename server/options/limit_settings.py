"""Options that say how much of the server one client may take. A part of Settings."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_serve.engine.option import COUNT, FILE, NATURAL, Parsed, option
from gguf_serve.engine.option_values import commas
from gguf_serve.server.options.replica_settings import ReplicaSettings

SERVER = "Server"
LIMITS = "Limits of clients"


# fmt: off
@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings(ReplicaSettings):
    max_connections: int = option(
        "--max-connections", group=LIMITS, type=COUNT, default=1024,
        help="open connections; for one more the longest idle one is closed. Fewer if the process "
        "may not open so many files",
    )
    max_connections_per_address: int = option(
        "--max-connections-per-address", group=LIMITS, type=COUNT, default=512,
        help="the same of one address (of IPv6: of one /64), Unix sockets and "
        "--forwarded-allow-ips aside",
    )
    max_request_line: int = option(
        "--max-request-line", group=LIMITS, type=COUNT, metavar="KIB", default=16,
        help="longest path with its query",
    )
    max_header: int = option(
        "--max-header", group=LIMITS, type=COUNT, metavar="KIB", default=64,
        help="request line and headers together",
    )
    max_header_count: int = option(
        "--max-header-count", group=LIMITS, type=COUNT, default=100, help="headers of a request",
    )
    header_timeout: int = option(
        "--header-timeout", group=LIMITS, type=COUNT, default=15,
        help="seconds until a request's headers are there, of a new connection or a new request",
    )
    idle_timeout: int = option(
        "--idle-timeout", group=LIMITS, type=COUNT, default=60,
        help="seconds that a connection stays open for a next request",
    )
    max_body: int = option(
        "--max-body", group=LIMITS, type=COUNT, metavar="MIB", default=64,
        help="longest request body that is read",
    )
    max_bodies: int = option(
        "--max-bodies", group=LIMITS, type=COUNT, metavar="MIB", default=128,
        help="bodies that are read at the same time, together; others wait",
    )
    limits: str | None = option(
        "--limits", group=LIMITS, type=FILE, default=None,
        help="TOML file with requests at once and tokens a minute of each key "
        "(docs/operations.md); beyond them 429",
    )
    response_memory: int = option(
        "--response-memory", group=LIMITS, type=NATURAL, metavar="MIB", default=64,
        help="for responses and conversations that are kept (previous_response_id, background), "
        "and as much for streams that may be taken up again; the oldest go. 0: none are",
    )
    batch_storage: int = option(
        "--batch-storage", group=LIMITS, type=COUNT, metavar="MIB", default=1024,
        help="all files in --batch-path, of all clients",
    )
    body_timeout: int = option(
        "--body-timeout", group=LIMITS, type=COUNT, default=60,
        help="seconds in which 256 KiB of a body, or its end, must arrive",
    )
    send_timeout: int = option(
        "--send-timeout", group=LIMITS, type=COUNT, default=60,
        help="seconds for which a client may take nothing of what waits for it",
    )
    max_unread: int = option(
        "--max-unread", group=LIMITS, type=COUNT, metavar="MIB", default=8,
        help="most of a stream that waits for its client; the request is cancelled then",
    )
    forwarded_allow_ips: tuple[str, ...] = option(
        "--forwarded-allow-ips", group=LIMITS, type=Parsed("ADDRESSES", commas),
        multiple=True, default=(),
        help="proxies (addresses or networks, commas between) whose X-Forwarded-For and "
        "X-Forwarded-Proto are believed",
    )
# fmt: on
