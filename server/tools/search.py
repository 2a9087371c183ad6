"""Searching the web by a tool of an MCP server, and what its answer has of pages.

Search servers answer in forms of their own. Looked for are, in this order: objects with a ``url``
in what they structure or write as JSON; links in Markdown, and lines that are a URL. The model is
told all of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

from gguf_serve.server.tools.tool import Outcome, Tool

NAME = "web_search"  # what models call it
MOST_PAGES = 20
MOST_TEXT = 2**14  # characters of a search that the model reads
QUERY = {"type": "string", "description": "What to look for, as one types it into a search engine"}
FUNCTION = {
    "name": NAME,
    "description": "Search the web, for what is new or not known for sure.",
    "parameters": {"type": "object", "properties": {"query": QUERY}, "required": ["query"]},
}
LINK = re.compile(r"\[([^\]\n]{1,500})\]\((https?://[^\s)]{1,2000})\)")
URL_LINE = re.compile(r"^(?:.{0,40}[\s:*-])?(https?://\S{1,2000})\s*$", re.MULTILINE)


class Page(msgspec.Struct, frozen=True):
    url: str
    title: str
    text: str = ""


class Found(msgspec.Struct, frozen=True):
    """``text`` is what the model reads; ``error`` is not empty where the search has failed."""

    pages: tuple[Page, ...] = ()
    text: str = ""
    error: str = ""


class Searches:
    """Those of one request."""

    def __init__(
        self,
        tool: Tool | None,
        most: int | None = None,
        allowed: Iterable[str] = (),
        blocked: Iterable[str] = (),
    ) -> None:
        """``tool`` None: there is none now; ``most``: searches; domains with those below them."""
        self._tool = tool
        self._left = most
        self._allowed, self._blocked = tuple(allowed), tuple(blocked)

    async def find(self, query: str, most_text: int = MOST_TEXT) -> Found:
        if self._left is not None:
            if self._left <= 0:
                return Found(error="no more searches are allowed: answer with what is there")
            self._left -= 1
        if self._tool is None:
            return Found(error="the search server cannot be reached")
        outcome = await self._tool.run({argument(self._tool): query}, None)
        if "error" in outcome:
            return Found(error=str(outcome["error"])[:most_text])
        return self._kept(outcome, min(most_text, MOST_TEXT))

    def _kept(self, outcome: Outcome, most_text: int) -> Found:
        text = str(outcome.get("plain_text_response", ""))
        pages = tuple(page for page in read_pages(outcome) if self._is_allowed(page.url))
        if self._allowed or self._blocked:  # the text has those that are not, too
            text = "\n\n".join(f"{page.title}\n{page.url}\n{page.text}" for page in pages)
        return Found(pages, text[:most_text] or "Nothing was found.")

    def _is_allowed(self, url: str) -> bool:
        host = urlsplit(url).hostname or ""

        def is_of(domains: tuple[str, ...]) -> bool:
            names = (domain.partition("/")[0].lower() for domain in domains)
            return any(host == name or host.endswith(f".{name}") for name in names)

        return not is_of(self._blocked) and (not self._allowed or is_of(self._allowed))


def argument(tool: Tool) -> str:
    """Which of the tool's arguments is the query."""
    properties = tool.parameters.get("properties") or {}
    required = tool.parameters.get("required") or []
    return "query" if "query" in properties or not required else str(required[0])


def read_pages(outcome: Outcome) -> list[Page]:
    """Each URL once."""
    text = str(outcome.get("plain_text_response", ""))
    found = list(objects(outcome.get("structured_content"))) or list(objects(decoded(text)))
    if not found:
        found = [Page(match[2], match[1]) for match in LINK.finditer(text)]
    if not found:
        found = [Page(match[1], match[1]) for match in URL_LINE.finditer(text)]
    return list({page.url: page for page in reversed(found)}.values())[::-1][:MOST_PAGES]


def decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None


def objects(value: Any, depth: int = 0) -> Iterator[Page]:
    """Objects with a URL, wherever they are."""
    if depth > 5:
        return
    if isinstance(value, list):
        for item in value:
            yield from objects(item, depth + 1)
    elif isinstance(value, dict):
        url = first(value, "url", "link", "href")
        if url.startswith(("http://", "https://")):
            text = first(value, "content", "text", "snippet", "description", "body")
            yield Page(url, first(value, "title", "name") or url, text)
            return
        for item in value.values():
            yield from objects(item, depth + 1)


def first(value: dict[str, Any], *names: str) -> str:
    """The first of these fields that is a text."""
    return next((value[name] for name in names if isinstance(value.get(name), str)), "")
