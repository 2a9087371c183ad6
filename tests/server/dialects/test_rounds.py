"""Web searches that the server runs, in Anthropic's and OpenAI's clients; the model is scripted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

import anthropic
import httpx
import openai
import pytest

from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.request import Event, Request
from gguf_serve.server.dialects.rounds import MOST_ROUNDS
from gguf_serve.server.tools.mcp_config import McpServer
from gguf_serve.server.tools.toolbox import Toolbox

pytest.importorskip("mcp", reason="the extra tools has the client of MCP servers")
ANSWER = "About 11 m/s."
TOOL = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
OTHER = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
ASKED = [{"role": "user", "content": "How fast is a swallow?"}]


def call(name: str, **arguments: Any) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


SEARCH = call("web_search", query="swallow speed")


def prompts(engine: Any) -> list[str]:
    return [bytes(i for i in request.prompt if i < 256).decode() for request in engine.requests]


@pytest.fixture
def searching(serve: Any, fakes: Any, mcp_url: str) -> Any:
    """Serves a model that says these texts, one a round, and the last of them for ever."""

    def start(*texts: str, tool: str = "n_search", n_ctx: int = 10**5) -> tuple[Any, str]:
        rounds = count()

        def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
            text = texts[min(next(rounds), len(texts) - 1)]
            yield from fakes.say(text)(request, cancelled)

        engine = fakes.engine(script, n_ctx=n_ctx)
        engine.chat_template = ChatTemplate(fakes.hermes)
        box = Toolbox(servers={"n": McpServer(url=mcp_url)}, web_search=tool)
        return engine, serve(engine, tools=box)

    return start


def asked_of(url: str, stream: bool, **more: Any) -> Any:
    body: dict[str, Any] = {"model": "any", "max_tokens": 500, "messages": ASKED, "tools": [TOOL]}
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        if not stream:
            return client.messages.create(**body | more)
        with client.messages.stream(**body | more) as events:
            return events.get_final_message()


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic(searching: Any, stream: bool) -> None:
    engine, url = searching("Let me look. " + SEARCH, ANSWER)
    message = asked_of(url, stream)
    kinds = [block.type for block in message.content]
    assert kinds == ["text", "server_tool_use", "web_search_tool_result", "text"]
    _, used, result, answer = message.content
    assert used.input == {"query": "swallow speed"}
    assert result.tool_use_id == used.id
    assert [page.url for page in result.content] == [
        "https://birds.example/swallows", "https://nuts.example/coconuts",
    ]  # fmt: skip
    assert answer.text == ANSWER
    assert message.stop_reason == "end_turn"
    assert message.usage.server_tool_use.web_search_requests == 1
    first, second = prompts(engine)
    assert '"web_search"' in first
    assert "11 m/s" in second
    assert message.usage.output_tokens == len(f"Let me look. {SEARCH}{ANSWER}".encode())
    # What the client sends back is what the model has read.
    later = [*ASKED, {"role": "assistant", "content": message.content}, ASKED[0]]
    asked_of(url, False, messages=later)
    begun = second.partition("<tools>")[0]
    assert prompts(engine)[2].startswith(begun)


def test_a_call_of_the_clients_tool_ends_the_answer(searching: Any) -> None:
    engine, url = searching(SEARCH + "\n" + call("look"))
    for stream in (False, True):
        message = asked_of(url, stream, tools=[TOOL, OTHER])
        kinds = sorted(block.type for block in message.content if block.type != "text")
        assert kinds == ["server_tool_use", "tool_use", "web_search_tool_result"]
        assert message.stop_reason == "tool_use"
    assert len(engine.requests) == 2


def test_searches_end(searching: Any) -> None:
    engine, url = searching(SEARCH)
    message = asked_of(url, False, max_tokens=5000)
    results = [one.content for one in message.content if one.type == "web_search_tool_result"]
    assert len(engine.requests) == MOST_ROUNDS
    assert [type(result) is list for result in results] == [True] * 2 + [False] * (MOST_ROUNDS - 3)
    assert message.stop_reason == "end_turn"
    assert "<tools>" not in prompts(engine)[-1]


@pytest.mark.parametrize("tool", ["n_search", "n_none"])
def test_a_search_that_fails_is_a_result(searching: Any, tool: str) -> None:
    engine, url = searching(call("web_search", query="broken"), ANSWER, tool=tool)
    message = asked_of(url, True)
    assert message.content[1].content.error_code == "unavailable"
    assert message.content[2].text == ANSWER
    told = "the index is gone" if tool == "n_search" else "cannot be reached"
    assert told in prompts(engine)[1]


def test_results_that_do_not_fit_are_left_out(searching: Any) -> None:
    engine, url = searching(SEARCH, ANSWER)
    asked_of(url, False)
    engine, url = searching(SEARCH, ANSWER, n_ctx=len(engine.requests[1].prompt) - 50)
    assert asked_of(url, False).content[-1].text == ANSWER
    assert "There is no room" in prompts(engine)[1]


def test_without_a_server_the_tool_is_left_out(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    message = asked_of(serve(engine), False)
    assert [block.type for block in message.content] == ["text"]
    assert message.usage.server_tool_use is None


def response_of(url: str, stream: bool, **more: Any) -> Any:
    body: dict[str, Any] = {"model": "any", "input": "How fast?", "tools": [{"type": "web_search"}]}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        if not stream:
            return client.responses.create(**body | more), []
        events = list(client.responses.create(**body | more, stream=True))
        return events[-1].response, events


@pytest.mark.parametrize("stream", [False, True])
def test_responses(searching: Any, stream: bool) -> None:
    engine, url = searching(SEARCH, ANSWER)
    sources = "web_search_call.action.sources"
    response, events = response_of(
        url, stream, include=[sources], tool_choice={"type": "web_search"}
    )
    search, message = response.output
    assert (search.type, search.status) == ("web_search_call", "completed")
    assert search.action.query == "swallow speed"
    assert search.action.sources[0].url == "https://birds.example/swallows"
    assert message.content[0].text == ANSWER
    assert response.usage.output_tokens == len((SEARCH + ANSWER).encode())
    assert engine.requests[0].constraint is not None  # it must call
    kinds = [event.type.removeprefix("response.") for event in events]
    if stream:
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert kinds[2:7] == [
            "output_item.added", "web_search_call.in_progress", "web_search_call.searching",
            "web_search_call.completed", "output_item.done",
        ]  # fmt: skip
        assert [event.output_index for event in events[7:9]] == [1, 1]


def test_responses_in_the_background(searching: Any) -> None:
    _, url = searching(SEARCH, ANSWER)
    response, _ = response_of(url, True, background=True)
    assert [item.type for item in response.output] == ["web_search_call", "message"]


def test_cached_pages_alone_are_not_searched_for(searching: Any) -> None:
    engine, url = searching(ANSWER)
    response_of(url, False, tools=[{"type": "web_search", "external_web_access": False}])
    assert "<tools>" not in prompts(engine)[0]


def test_domains_are_checked(searching: Any) -> None:
    engine, url = searching(SEARCH, ANSWER)
    filters = {"allowed_domains": ["nuts.example"]}
    response_of(url, False, tools=[{"type": "web_search", "filters": filters}])
    assert "birds.example" not in prompts(engine)[1]
    body = {"messages": ASKED, "tools": [TOOL | {"blocked_domains": "x"}]}
    answer = httpx.post(f"{url}/v1/messages", json=body)
    assert answer.status_code == 400
    assert "blocked_domains" in answer.json()["error"]["message"]


def test_a_client_that_goes_ends_the_search(searching: Any) -> None:
    engine, url = searching(SEARCH, ANSWER, tool="n_sleep")
    body = {"messages": ASKED, "tools": [TOOL], "stream": True}
    with httpx.stream("POST", f"{url}/v1/messages", json=body) as answer:
        for line in answer.iter_lines():
            if "server_tool_use" in line:
                break
    assert httpx.get(f"{url}/health").status_code == 200
    assert len(engine.requests) == 1
