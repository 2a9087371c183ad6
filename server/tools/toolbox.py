"""All tools that the server runs, by their names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from gguf_serve.server.tools.host import host_tools
from gguf_serve.server.tools.mcp_config import McpServer
from gguf_serve.server.tools.mcp_session import McpSession
from gguf_serve.server.tools.tool import Tool

log = logging.getLogger(__name__)


class Toolbox:
    """Used by the event loop alone."""

    def __init__(
        self,
        names: Iterable[str] = (),
        servers: Mapping[str, McpServer] | None = None,
        web_search: str | None = None,
    ) -> None:
        """``names``: of this host's tools; ``web_search``: the tool that searches the web, as
        ``tools`` names it."""
        self.web_search = web_search
        self._host = host_tools(names)
        self._servers = dict(servers or {})
        self._sessions: list[McpSession] | None = None

    def __bool__(self) -> bool:
        return bool(self._host or self._servers)

    async def tools(self) -> dict[str, Tool]:
        """By their names, of which the first counts."""
        if self._sessions is None:
            self._sessions = [McpSession(name, server) for name, server in self._servers.items()]
        listed = await asyncio.gather(*(session.tools() for session in self._sessions))
        found: dict[str, Tool] = {}
        for tool in [*self._host, *(tool for tools in listed for tool in tools)]:
            if found.setdefault(tool.name, tool) is not tool:
                log.warning("there are two tools %s: the second is left out", tool.name)
        return found

    @property
    def searches_web(self) -> bool:
        return self.web_search is not None

    async def search_tool(self) -> Tool | None:
        """None: its server cannot be reached, or has no such tool."""
        found = (await self.tools()).get(self.web_search or "")
        if found is None and self.searches_web:
            log.warning("there is no tool %s (--web-search) now", self.web_search)
        return found

    async def close(self) -> None:
        for session in self._sessions or ():
            await session.close()
