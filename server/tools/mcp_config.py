"""The MCP servers of --mcp-servers-config: JSON as Cursor, Claude and llama-server read it."""

from __future__ import annotations

from typing import Any

import msgspec

DEFAULT_TIMEOUT_MS = 30_000


class McpServer(msgspec.Struct, frozen=True):
    """A program that is started (``command``), or a URL of Streamable HTTP. What else clients keep
    in their files is theirs."""

    command: str = ""
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None
    url: str = ""
    headers: dict[str, str] = {}
    timeout_ms: int = DEFAULT_TIMEOUT_MS
    disabled: bool = False


def read_servers(text: str) -> dict[str, McpServer]:
    """The servers by name; ValueError says what is wrong."""
    try:
        whole = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    given = whole.get("mcpServers") if isinstance(whole, dict) else None
    if not isinstance(given, dict):
        raise ValueError("there is no object mcpServers")
    found = {name: read_server(name, value) for name, value in given.items()}
    return {name: server for name, server in found.items() if not server.disabled}


def read_server(name: str, given: Any) -> McpServer:
    try:
        server = msgspec.convert(given, McpServer)
    except msgspec.ValidationError as error:
        raise ValueError(f"mcpServers.{name}: {error}") from None
    if bool(server.command) == bool(server.url):
        raise ValueError(f"mcpServers.{name}: expected a command or a url, and not both")
    if server.url and not server.url.startswith(("http://", "https://")):
        raise ValueError(f"mcpServers.{name}.url: {server.url} is no URL of HTTP")
    if server.timeout_ms < 1:
        raise ValueError(f"mcpServers.{name}.timeout_ms: expected 1 or more")
    return server
