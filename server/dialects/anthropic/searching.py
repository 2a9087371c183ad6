"""Anthropic's web search, run by the server: its tool, the blocks of calls and of their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gguf_serve.server.dialects.rounds import Search
from gguf_serve.server.dialects.sealed import sealed, unsealed
from gguf_serve.server.errors import invalid, shown
from gguf_serve.server.tools.search import Page, Searches
from gguf_serve.server.tools.toolbox import Toolbox

TOOL = "web_search_"  # its types begin so, and end with a date
PREFIX = "srvtoolu_"


def is_search(tool: Mapping[str, Any]) -> bool:
    return str(tool.get("type")).startswith(TOOL)


async def searches(tools: Sequence[Mapping[str, Any]] | None, box: Toolbox) -> Searches | None:
    """What a request's tool allows; None: it has none, or the server does not search."""
    asked = next((tool for tool in tools or () if is_search(tool)), None)
    if asked is None or not box.searches_web:
        return None
    most = asked.get("max_uses")
    if not isinstance(most, int | None):
        raise invalid(f"Field 'tools.max_uses': expected a number, got {shown(most)}")
    allowed, blocked = (domains(asked, f"{kind}_domains") for kind in ("allowed", "blocked"))
    return Searches(await box.search_tool(), most, allowed, blocked)


def domains(tool: Mapping[str, Any], name: str) -> list[str]:
    given = tool.get(name) or []
    if not isinstance(given, list) or not all(isinstance(domain, str) for domain in given):
        raise invalid(f"Field 'tools.{name}': expected an array of strings, got {shown(given)}")
    return given


def search_block(search: Search) -> dict[str, Any]:
    query = {"query": search.query}
    return {
        "type": "server_tool_use",
        "id": PREFIX + search.id,
        "name": "web_search",
        "input": query,
    }


def result_block(search: Search) -> dict[str, Any]:
    """The text that the model has read is in the first result, for the turns that follow."""
    found = search.found
    assert found is not None
    content: Any = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
    if not found.error:
        pages = found.pages or (Page("about:blank", "What was found"),)
        content = [
            {
                "type": "web_search_result",
                "url": page.url,
                "title": page.title,
                "encrypted_content": sealed("" if place else found.text),
                "page_age": None,
            }
            for place, page in enumerate(pages)
        ]
    return {
        "type": "web_search_tool_result",
        "tool_use_id": PREFIX + search.id,
        "content": content,
    }


def result_message(name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier answer has found, as a tool's message."""
    content = block.get("content")
    if not isinstance(block.get("tool_use_id"), str):
        raise invalid(f"Field '{name}.tool_use_id': expected a string")
    text = "Error: the search has failed"
    if isinstance(content, list):
        pages = [page for page in content if isinstance(page, dict)]
        text = "".join(unsealed(page.get("encrypted_content")) for page in pages)
        listed = (f"{page.get('title', '')}\n{page.get('url', '')}" for page in pages)
        text = text or "\n\n".join(listed)
    return {"role": "tool", "tool_call_id": block["tool_use_id"], "content": text}
