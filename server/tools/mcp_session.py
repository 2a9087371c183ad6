"""A connection to one MCP server, by the package ``mcp`` (extra ``tools``).

It is made by the first who asks, and anew where it has broken; a server that cannot be reached is
left alone for some seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gguf_serve.server.tools.mcp_config import McpServer
from gguf_serve.server.tools.tool import Outcome, Tool

if TYPE_CHECKING:
    from mcp import Client

log = logging.getLogger(__name__)
CONNECTING = 10.0  # seconds, until it has told its tools
CLOSED = -32000  # the library's code of an error for a connection that is gone
COOLDOWN = 5.0  # seconds before a server that has failed is tried again
MOST_TOOLS = 256


class McpSession:
    def __init__(self, name: str, server: McpServer) -> None:
        self.name = name
        self._server = server
        self._lock = asyncio.Lock()
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._ends = asyncio.Event()  # of this connection
        self._tools: list[Tool] = []
        self._failed_at = -COOLDOWN
        self._why = ""

    async def tools(self) -> list[Tool]:
        """Those that the server has; none, and a warning in the log, if it cannot be reached."""
        try:
            await self._connected()
        except ConnectionError as error:
            log.warning("%s", error)
            return []
        return self._tools

    async def close(self) -> None:
        self._ends.set()
        if self._task is not None:
            with suppress(Exception):
                await self._task

    async def _call(self, tool: str, arguments: dict[str, Any], folder: str | None) -> Outcome:
        seconds = self._server.timeout_ms / 1e3
        try:
            client = await self._connected()
            async with asyncio.timeout(seconds):
                found = await client.call_tool(tool, arguments)
        except TimeoutError:
            return {"error": f"{self.name}: {tool} has not answered within {seconds:g} seconds"}
        except Exception as error:  # of the library, of the connection or of the server's answer
            if getattr(error, "code", CLOSED) == CLOSED:  # the next call connects anew
                await self.close()
            return {"error": f"{self.name}: {getattr(error, 'message', None) or reason(error)}"}
        texts = [part.text for part in found.content if part.type == "text"]
        if found.is_error:
            return {"error": "\n".join(texts) or f"{tool} has failed"}
        outcome: Outcome = {"plain_text_response": "\n".join(texts)}
        if found.structured_content is not None:
            outcome["structured_content"] = found.structured_content
        return outcome

    async def _connected(self) -> Client:
        async with self._lock:
            if self._client is not None and self._task is not None and not self._task.done():
                return self._client
            if time.monotonic() - self._failed_at < COOLDOWN:
                raise ConnectionError(self._why)
            self._ends = asyncio.Event()
            ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._hold(ready))
            both: set[asyncio.Future[Any]] = {ready, self._task}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                self._failed_at = time.monotonic()
                error = self._task.exception()
                self._why = f"MCP server {self.name} cannot be used: {reason(error)}"
                raise ConnectionError(self._why)
            self._client = ready.result()
            return self._client

    async def _hold(self, ready: asyncio.Future[Client]) -> None:
        """The connection is entered and left in one task, as the library's scopes want it."""
        async with asyncio.timeout(CONNECTING) as deadline, connection(self._server) as client:
            self._tools = await self._listed(client)
            deadline.reschedule(None)
            ready.set_result(client)
            await self._ends.wait()

    async def _listed(self, client: Client) -> list[Tool]:
        found: list[Tool] = []
        cursor: str | None = None
        while len(found) < MOST_TOOLS:
            page = await client.list_tools(cursor=cursor)
            for tool in page.tools:
                name = f"{self.name}_{tool.name}"
                run = partial(self._call, tool.name)
                found.append(
                    Tool(name, name, tool.description or "", tool.input_schema, run, kind="mcp")
                )
            cursor = page.next_cursor
            if cursor is None:
                break
        log.info("MCP server %s: %d tools", self.name, len(found))
        return found


@asynccontextmanager
async def connection(server: McpServer) -> AsyncIterator[Client]:
    await asyncio.to_thread(import_module, "mcp.client.streamable_http")  # it takes a second
    from mcp import Client, StdioServerParameters

    if server.command:
        # The library gives the program PATH, HOME and the like of this process, and no keys.
        program = StdioServerParameters(
            command=server.command, args=server.args, env=server.env or None, cwd=server.cwd
        )
        async with Client(program) as client:
            yield client
        return
    from httpx2 import AsyncClient, Timeout
    from mcp.client.streamable_http import streamable_http_client

    async with (
        AsyncClient(headers=server.headers, timeout=Timeout(CONNECTING, read=None)) as http,
        Client(streamable_http_client(server.url, http_client=http)) as client,
    ):
        yield client


def reason(error: BaseException | None) -> str:
    """The innermost of a group's errors, in its own words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECTING:g} seconds"
    return str(error) or type(error).__name__
