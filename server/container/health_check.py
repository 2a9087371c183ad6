"""Whether the server of this container is healthy, by its own command line and environment.

    python -m gguf_serve.server.container.health_check

The exit code is 0 when the model is loaded and the engine runs. Port, prefix, TLS and Unix
sockets are those that the container's first process was started with.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from gguf_serve.server.cli import main
from gguf_serve.server.options.settings import Settings
from gguf_serve.server.options.stated import made

COMMANDS = frozenset({"serve", "gguf-serve"})
FIRST_PROCESS = Path("/proc/1/cmdline")
SECONDS = 4.0
TO_REACH = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # by the address that is listened on


def is_healthy(words: Sequence[str]) -> bool:
    """``words``: the command line of a process that runs ``serve``, maybe behind others such as
    an interpreter or an init process."""
    at = next((i for i, word in enumerate(words) if Path(word).name in COMMANDS), len(words))
    with main.make_context("serve", list(words[at + 1 :])) as context:
        settings = made(Settings, context.params)
    host = settings.host[0]
    unix = host if host.endswith(".sock") else None
    scheme = "http" if settings.ssl_cert_file is None else "https"
    address = "unix" if unix else f"{TO_REACH.get(host, host)}:{settings.port}"
    # The certificate is this server's own, made for the name that its clients know.
    transport = httpx.HTTPTransport(uds=unix, verify=False)
    try:
        with httpx.Client(transport=transport, timeout=SECONDS, trust_env=False) as client:
            url = f"{scheme}://{address}{settings.api_prefix.rstrip('/')}/health"
            return client.get(url).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    sys.exit(not is_healthy(FIRST_PROCESS.read_text(encoding="utf-8").split("\0")[:-1]))
