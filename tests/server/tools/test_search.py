"""What is read of search servers' answers, and what a request allows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gguf_serve.server.tools.search import Found, Page, Searches, argument, read_pages
from gguf_serve.server.tools.tool import Outcome, Tool

PAGES = [{"title": "A", "url": "https://a.example/1", "snippet": "first"},
         {"name": "B", "link": "https://www.b.example/2"}]  # fmt: skip
READ = [Page("https://a.example/1", "A", "first"), Page("https://www.b.example/2", "B")]


@pytest.mark.parametrize(
    ("outcome", "pages"),
    [
        ({"plain_text_response": "x", "structured_content": {"web": {"results": PAGES}}}, READ),
        ({"plain_text_response": '{"results": [{"title": "A", "url": "https://a.example/1"}]}'},
         [Page("https://a.example/1", "A")]),
        ({"plain_text_response": "1. [A](https://a.example/1) and [again](https://a.example/1)"},
         [Page("https://a.example/1", "A")]),
        ({"plain_text_response": "Title: A\nURL: https://a.example/1\nsaid"},
         [Page("https://a.example/1", "https://a.example/1")]),
        ({"plain_text_response": "nothing"}, []),
    ],
)  # fmt: skip
def test_pages(outcome: Outcome, pages: list[Page]) -> None:
    assert read_pages(outcome) == pages


def tool(answer: Outcome, parameters: dict[str, Any] | None = None) -> Tool:
    async def run(arguments: dict[str, Any], folder: str | None) -> Outcome:
        return answer | {"asked": arguments}

    return Tool("s", "s", "", parameters or {}, run, kind="mcp")


def test_the_query_goes_where_the_tool_has_it() -> None:
    assert argument(tool({})) == "query"
    schema = {"properties": {"q": {}, "n": {}}, "required": ["q"]}
    assert argument(tool({}, schema)) == "q"


def find(searches: Searches, most: int = 1000) -> Found:
    return asyncio.run(searches.find("x", most))


def test_domains_and_numbers_are_kept() -> None:
    answer = {"plain_text_response": "all of it", "structured_content": PAGES}
    found = find(Searches(tool(answer), allowed=["b.example"]))
    assert found.pages == (READ[1],)
    assert "a.example" not in found.text
    found = find(Searches(tool(answer), blocked=["b.example/path"]))
    assert found.pages == (READ[0],)
    limited = Searches(tool(answer), most=1)
    assert find(limited, most=3).text == "all"
    assert "no more searches" in find(limited).error


def test_errors_are_results() -> None:
    assert find(Searches(None)).error == "the search server cannot be reached"
    assert find(Searches(tool({"error": "gone"}))).error == "gone"
