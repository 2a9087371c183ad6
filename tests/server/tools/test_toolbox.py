"""Tools of MCP servers: by HTTP, by a program, slow ones, broken ones, none."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from gguf_serve.server.tools.mcp_config import McpServer
from gguf_serve.server.tools.toolbox import Toolbox

pytest.importorskip("mcp", reason="the extra tools has the client of MCP servers")


def test_a_server_by_http_and_one_that_is_not_there(
    mcp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def use() -> None:
        slow = McpServer(url=mcp_url, timeout_ms=300)
        servers = {"n": McpServer(url=mcp_url), "gone": McpServer(url="http://127.0.0.1:1/mcp")}
        box = Toolbox(["get_info"], servers | {"slow": slow})
        tools = await box.tools()
        assert [*tools][:4] == ["get_info", "n_search", "n_add", "n_sleep"]
        assert tools["n_add"].function["function"]["parameters"]["required"] == ["a", "b"]
        assert (await tools["n_add"].run({"a": 2, "b": 3}, None))["plain_text_response"] == "5"
        assert "error" in await tools["n_add"].run({"a": "two"}, None)
        broken = await tools["n_search"].run({"query": "broken"}, None)
        assert broken == {"error": "ValueError: the index is gone"}
        late = await tools["slow_sleep"].run({}, None)
        assert late == {"error": "slow: sleep has not answered within 0.3 seconds"}
        # It goes on after that; its time here has been too short for a busy machine.
        assert box._sessions is not None
        box._sessions[-1]._server = McpServer(url=mcp_url)
        assert (await tools["slow_add"].run({"a": 1, "b": 1}, None))["plain_text_response"] == "2"
        await box.close()

    asyncio.run(use())
    assert "MCP server gone cannot be used" in caplog.text


def test_a_program_that_ends_is_started_again(mcp_program: Path) -> None:
    async def use() -> None:
        box = Toolbox(servers={"n": McpServer(command=sys.executable, args=[str(mcp_program)]),
                               "none": McpServer(command="/no/such/program")})  # fmt: skip
        tools = await box.tools()
        assert [*tools] == ["n_search", "n_add", "n_sleep"]
        assert (await tools["n_add"].run({"a": 2, "b": 3}, None))["plain_text_response"] == "5"
        await tools["n_add"].run({"a": 666, "b": 0}, None)  # it ends after that
        assert "error" in await tools["n_add"].run({"a": 2, "b": 3}, None)
        assert (await tools["n_add"].run({"a": 2, "b": 3}, None))["plain_text_response"] == "5"
        await box.close()

    asyncio.run(use())
