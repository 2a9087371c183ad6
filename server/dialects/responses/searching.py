"""OpenAI's web search, run by the server: its tool, and the items of searches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf_serve.server.dialects.rounds import Search
from gguf_serve.server.errors import invalid, shown
from gguf_serve.server.requests.answer import random_id
from gguf_serve.server.tools.search import Searches
from gguf_serve.server.tools.toolbox import Toolbox

TOOL = "web_search"  # its types begin so; some end with a date
SOURCES = "web_search_call.action.sources"  # of ``include``


def is_search(tool: Any) -> bool:
    """Whether it is one that may look at the web as it is now."""
    return (
        isinstance(tool, dict)
        and str(tool.get("type")).startswith(TOOL)
        and tool.get("external_web_access") is not False
    )


async def searches(data: Mapping[str, Any], box: Toolbox) -> Searches | None:
    """What a request's tool allows; None: it has none, or the server does not search."""
    asked = next((tool for tool in data.get("tools") or () if is_search(tool)), None)
    if asked is None or not box.searches_web:
        return None
    most = data.get("max_tool_calls")
    if not isinstance(most, int | None):
        raise invalid(f"Field 'max_tool_calls': expected a number, got {shown(most)}")
    filters = asked.get("filters") or {}
    allowed = filters.get("allowed_domains") if isinstance(filters, dict) else None
    allowed = allowed or []
    if not isinstance(allowed, list) or not all(isinstance(one, str) for one in allowed):
        expected = "expected allowed_domains as an array of strings"
        raise invalid(f"Field 'tools.filters': {expected}, got {shown(filters)}")
    return Searches(await box.search_tool(), most, allowed)


def search_item(search: Search) -> dict[str, Any]:
    action = {"type": "search", "query": search.query, "queries": [search.query]}
    return {
        "type": "web_search_call",
        "id": random_id("ws_"),
        "status": "in_progress",
        "action": action,
    }


def ended_item(item: Mapping[str, Any], search: Search, shows_sources: bool) -> dict[str, Any]:
    found = search.found
    assert found is not None
    action = item["action"]
    if shows_sources:
        action = action | {"sources": [{"type": "url", "url": page.url} for page in found.pages]}
    return {**item, "status": "failed" if found.error else "completed", "action": action}
