"""Anthropic's Messages, through the anthropic client."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import pytest

from gguf_serve.engine.request import Event, Finished, Request, Started, Timings
from gguf_serve.server.dialects.anthropic.input import MessagesFields, chat_body
from gguf_serve.server.requests.fields import convert

TEXT = "Hello wörld"
N_BYTES = len(TEXT.encode())
USER = [{"role": "user", "content": "hi"}]
TOO_LONG = r"prompt is too long: 20 tokens > 10 maximum; .* exceeds the available context size"
PROMPT = "<s>user: hi\nassistant:"


@pytest.fixture
def engine(fakes: Any) -> Any:
    return fakes.engine()


@pytest.fixture
def url(serve: Any, engine: Any) -> str:
    return serve(engine)


@pytest.fixture
def client() -> Iterator[Callable[..., anthropic.Anthropic]]:
    clients: list[anthropic.Anthropic] = []

    def make(url: str, api_key: str = "none") -> anthropic.Anthropic:
        made = anthropic.Anthropic(base_url=url, api_key=api_key, max_retries=0, timeout=20)
        clients.append(made)
        return made

    yield make
    for made in clients:
        made.close()


def body(**fields: Any) -> dict[str, Any]:
    data = {"messages": USER, **fields}
    return chat_body(convert(data, MessagesFields), data)


def test_message(url: str, client: Any, engine: Any) -> None:
    answer = client(url).messages.create(
        model="m",
        max_tokens=99,
        system="Be brief",
        messages=USER,
        stop_sequences=["STOP"],
        extra_body={"temperature": 0.5, "top_k": 3},
    )
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "tiny.Q8_0.gguf")
    assert [(block.type, block.text) for block in answer.content] == [("text", TEXT)]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens == len(
        engine.requests[0].prompt
    )
    assert answer.usage.cache_read_input_tokens == 2
    assert answer.usage.output_tokens == N_BYTES
    (request,) = engine.requests
    assert (request.max_tokens, request.stop) == (99, ("STOP",))
    assert (request.sampling.temperature, request.sampling.top_k) == (0.5, 3)
    assert engine.chat_template.asked()["messages"][0] == {
        "role": "system",
        "content": "Be brief",
    }


def test_stream(url: str, client: Any) -> None:
    with client(url).messages.stream(model="m", max_tokens=99, messages=USER) as stream:
        texts = list(stream.text_stream)
        message = stream.get_final_message()
    assert "".join(texts) == TEXT == message.content[0].text
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == N_BYTES


def stream_events(url: str, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    text = httpx.post(url + "/v1/messages", json=body | {"stream": True}).text
    events = []
    for part in text.removesuffix("\n\n").split("\n\n"):
        name, data = part.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


def test_stream_events(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(fakes.say("ab")))
    events = stream_events(url, {"messages": USER, "max_tokens": 9})
    assert all(name == data["type"] for name, data in events)
    assert [name for name, _ in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    started = events[0][1]["message"]
    assert (started["content"], started["stop_reason"]) == ([], None)
    assert events[1][1]["content_block"] == {"type": "text", "text": ""}
    assert events[2][1]["delta"] == {"type": "text_delta", "text": "a"}
    assert events[5][1]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[5][1]["usage"]["output_tokens"] == 2


def test_limits(url: str, client: Any) -> None:
    answer = client(url).messages.create(model="m", max_tokens=3, messages=USER)
    assert answer.stop_reason == "max_tokens"


@pytest.mark.parametrize(
    ("max_tokens", "reason"),
    [
        (9, "model_context_window_exceeded"),
        (8, "max_tokens"),
        (-1, "model_context_window_exceeded"),
    ],
)
def test_a_context_that_was_cut(
    serve: Any, fakes: Any, client: Any, max_tokens: int, reason: str
) -> None:
    """Full, or shifted on the way to max_tokens."""

    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        yield Started(3, 0, 0)
        yield Finished("limit", Timings(predicted_n=8), truncated=True)

    create = client(serve(fakes.engine(script))).messages.create
    assert create(model="m", max_tokens=max_tokens, messages=USER).stop_reason == reason


def test_count_tokens(url: str, client: Any) -> None:
    counted = client(url).messages.count_tokens(model="m", messages=USER)
    assert counted.input_tokens == len(PROMPT) - 2


def test_models(url: str, fakes: Any, client: Any) -> None:
    model, *adapters = client(url).models.list().data
    assert (model.id, model.type, model.display_name) == ("tiny.Q8_0.gguf", "model", "Tiny")
    assert [each.type for each in adapters] == ["model"] * len(fakes.engine().adapters())
    assert client(url).models.retrieve("any").created_at.year > 2000


def test_errors_have_anthropics_shape(serve: Any, fakes: Any, client: Any) -> None:
    url = serve(fakes.engine(n_ctx=10), api_keys=["k"])
    with pytest.raises(anthropic.AuthenticationError) as caught:
        client(url).messages.create(model="m", max_tokens=3, messages=USER)
    assert caught.value.body == {
        "type": "error",
        "error": {"type": "authentication_error", "message": "Invalid API Key"},
    }
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError, match=TOO_LONG):
            client(url, "k").messages.create(model="m", max_tokens=3, messages=USER, stream=stream)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"messages": [{"role": "user", "content": 5}]}, r"messages\[0\].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\[0\].role"),
        ({"messages": []}, "messages"),
        ({"tool_choice": {"type": "maybe"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice"),
        ({"system": [{"type": "image"}]}, r"system\[0\]"),
        ({"max_tokens": "x"}, "max_tokens"),
        ({"stop_sequences": ["x"] * 257}, "'stop_sequences': at most 256"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"extra_body": {"output_format": {"schema": {}}}}, "output_format"),
    ],
)
def test_refusals_name_the_field(url: str, client: Any, fields: Any, name: str) -> None:
    given = {"messages": USER, "max_tokens": 9} | fields
    with pytest.raises(anthropic.BadRequestError, match=name):
        client(url).messages.create(model="m", **given)


def test_blocks_become_messages() -> None:
    tool = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
    made = body(
        system=[{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hmm", "signature": "s"},
                    {"type": "text", "text": "ok"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "42"},
                    {"type": "text", "text": "go on"},
                ],
            },
        ],
        tools=[tool, {"type": "web_search_20250305", "name": "web_search"}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 2000},
    )
    assert made["messages"] == [
        {
            "role": "system",
            "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
        },
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "ok",
            "reasoning_content": "hmm",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"x":1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "42"},
        {"role": "user", "content": "go on"},
    ]
    assert made["tools"] == [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
        }
    ]
    assert (made["tool_choice"], made["parallel_tool_calls"]) == ("required", False)
    assert made["chat_template_kwargs"] == {"enable_thinking": True}
    assert made["thinking_budget_tokens"] == 2000


def test_the_billing_stamp_does_not_change_the_prompt() -> None:
    def system(stamp: str) -> Any:
        blocks = [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2; cch={stamp};"},
            {"type": "text", "text": "You are a coder."},
        ]
        return body(system=blocks)["messages"][0]

    assert system("1a2b") == system("3c4d") == {"role": "system", "content": "You are a coder."}
    text = "x-anthropic-billing-header: a=1;\nYou are a coder."
    assert body(system=text)["messages"][0]["content"] == "You are a coder."
