from __future__ import annotations

import pytest

from gguf_serve.server.tools.mcp_config import McpServer, read_servers


def test_what_clients_write() -> None:
    found = read_servers(
        '{"mcpServers": {"a": {"command": "npx", "args": ["-y", "x"], "autoApprove": []},'
        '"b": {"type": "http", "url": "http://h/mcp", "headers": {"k": "v"}, "timeout_ms": 5},'
        '"c": {"command": "x", "disabled": true}}}'
    )
    assert found == {
        "a": McpServer(command="npx", args=["-y", "x"]),
        "b": McpServer(url="http://h/mcp", headers={"k": "v"}, timeout_ms=5),
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not JSON"),
        ("[]", "mcpServers"),
        ('{"mcpServers": {"a": {}}}', "mcpServers.a: expected a command or a url"),
        ('{"mcpServers": {"a": {"command": 1}}}', "mcpServers.a: Expected `str`"),
        ('{"mcpServers": {"a": {"url": "file:///x"}}}', "no URL of HTTP"),
        ('{"mcpServers": {"a": {"command": "x", "timeout_ms": 0}}}', "timeout_ms"),
    ],
)
def test_what_is_wrong_is_told(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_servers(text)
