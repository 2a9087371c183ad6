"""Reasoning and what the template decides, the same in every dialect."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.request import Delta, Event, Finished, Request, Started, Timings

SOURCE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}: "
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: "
    "{% if not enable_thinking %}<think>{{ '\\n\\n' }}</think>{{ '\\n\\n' }}{% endif %}{% endif %}"
)
RAW = "<think>\nLet me see.</think>\n\nHello wörld"
REASONING, TEXT = "Let me see.", "Hello wörld"
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
def engine(fakes: Any) -> Any:
    made = fakes.engine(fakes.say(RAW))
    made.chat_template = ChatTemplate(SOURCE)
    return made


@pytest.fixture
def url(serve: Any, engine: Any) -> str:
    return serve(engine)


def post(url: str, path: str, **body: Any) -> Any:
    response = httpx.post(url + path, json={"messages": USER, "stream": False} | body)
    assert response.status_code == 200, response.text
    return response.json()


def test_every_dialect_splits_reasoning_off(url: str) -> None:
    message = post(url, "/v1/chat/completions")["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (REASONING, TEXT)
    thinking, text = post(url, "/v1/messages")["content"]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", REASONING)
    assert len(thinking["signature"]) > 40
    assert text == {"type": "text", "text": TEXT}
    reasoning, message = post(url, "/v1/responses", input="hi")["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": REASONING}]
    assert message["content"][0]["text"] == TEXT
    message = post(url, "/api/chat")["message"]
    assert (message["thinking"], message["content"]) == (REASONING, TEXT)
    answer = post(url, "/api/generate", prompt="hi")
    assert (answer["thinking"], answer["response"]) == (REASONING, TEXT)


def deltas(url: str, **body: Any) -> list[dict[str, Any]]:
    text = httpx.post(
        url + "/v1/chat/completions", json={"messages": USER, "stream": True} | body
    ).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if "{" in line]
    return [json.loads(line)["choices"][0]["delta"] for line in lines]


def test_a_stream_has_reasoning_first_and_no_tags(url: str) -> None:
    first, *middle, last = deltas(url)
    assert (first, last) == ({"role": "assistant", "content": None}, {})
    assert all(len(delta) == 1 for delta in middle)
    kinds = [next(iter(delta)) for delta in middle]
    assert kinds == sorted(kinds, reverse=True)  # reasoning_content, content
    reasoning = "".join(delta.get("reasoning_content", "") for delta in middle)
    assert (reasoning, "".join(delta.get("content", "") for delta in middle)) == (REASONING, TEXT)


def test_tokens_stay_with_their_text(url: str) -> None:
    choice = post(url, "/v1/chat/completions", logprobs=True, return_tokens=True)["choices"][0]
    assert choice["tokens"] == [*RAW.encode()]
    assert len(choice["logprobs"]["content"]) == len(RAW.encode())


def test_usage_counts_the_tokens_of_reasoning(url: str) -> None:
    usage = post(url, "/v1/chat/completions")["usage"]
    n_reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    assert len(REASONING) <= n_reasoning <= len("<think>" + REASONING + "</think>")
    usage = post(url, "/v1/responses", input="x")["usage"]
    assert usage["output_tokens_details"]["reasoning_tokens"] == n_reasoning
    usage = post(url, "/v1/chat/completions", reasoning_format="none")["usage"]
    assert "completion_tokens_details" not in usage


def test_reasoning_format(url: str) -> None:
    message = post(url, "/v1/chat/completions", reasoning_format="none")["choices"][0]["message"]
    assert message["content"] == RAW
    assert "reasoning_content" not in message


def test_thinking_off(url: str, engine: Any) -> None:
    def prompt() -> str:
        return bytes(engine.requests[-1].prompt[1:]).decode()

    post(url, "/v1/chat/completions", chat_template_kwargs={"enable_thinking": False})
    assert prompt().endswith("<think>\n\n</think>\n\n")
    post(url, "/v1/chat/completions", reasoning_effort="none")
    assert prompt().endswith("</think>\n\n")
    post(url, "/v1/messages", thinking={"type": "disabled"})
    assert prompt().endswith("</think>\n\n")
    post(url, "/api/chat", think=False)
    assert prompt().endswith("</think>\n\n")
    post(url, "/api/chat")
    assert prompt().endswith("assistant: ")


def test_earlier_reasoning_reaches_the_template(url: str, engine: Any) -> None:
    blocks = [
        {"type": "thinking", "thinking": "why", "signature": "x"},
        {"type": "text", "text": "a"},
    ]
    messages = [*USER, {"role": "assistant", "content": blocks}, *USER]
    post(url, "/v1/messages", messages=messages)
    assert b"<think>why</think>a" in bytes(engine.requests[-1].prompt[1:])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"reasoning_budget_tokens": 5}),
        ("/v1/chat/completions", {"thinking_budget_tokens": 5}),
        ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 5}}),
    ],
)
def test_a_budget_of_reasoning(url: str, engine: Any, path: str, body: Any) -> None:
    post(url, path, **body)
    budget = engine.requests[-1].reasoning
    assert (budget.start, budget.ends, budget.n_tokens) == ("<think>", ("</think>",), 5)
    assert (bytes(budget.forced), budget.is_open) == (b"</think>", False)


def test_the_servers_budget_and_its_message(serve: Any, engine: Any, defaults: Any) -> None:
    url = serve(engine, defaults=defaults(reasoning_budget=7, reasoning_budget_message="Enough."))
    post(url, "/v1/chat/completions")
    assert engine.requests[-1].reasoning.n_tokens == 7
    assert bytes(engine.requests[-1].reasoning.forced) == b"Enough.</think>"
    post(url, "/v1/chat/completions", reasoning_budget_tokens=-1)
    assert engine.requests[-1].reasoning is None


def test_what_is_continued_is_not_repeated(serve: Any, fakes: Any) -> None:
    engine = fakes.engine(fakes.say(" world"))
    engine.chat_template = ChatTemplate(SOURCE)
    url = serve(engine)
    messages = [*USER, {"role": "assistant", "content": "Hello"}]
    answer = post(url, "/v1/chat/completions", messages=messages)
    assert answer["choices"][0]["message"]["content"] == " world"
    assert bytes(engine.requests[-1].prompt[1:]).endswith(b"Hello")
    assert post(url, "/v1/messages", messages=messages)["content"][0]["text"] == " world"


def test_reasoning_is_ended_by_the_client(serve: Any, fakes: Any) -> None:
    ended = threading.Event()

    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        yield Started(3, 0, 0)
        yield Delta("<think>hm", (1,))
        assert ended.wait(20)
        yield Delta("</think>ok", (2,))
        yield Finished("eos", Timings(predicted_n=2))

    engine = fakes.engine(script)
    engine.chat_template = ChatTemplate(SOURCE)
    engine.end_reasoning = lambda ticket: ended.set()
    url = serve(engine)
    body = {"messages": USER, "stream": True, "reasoning_control": True}
    with httpx.stream("POST", url + "/v1/chat/completions", json=body) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data: {"))
        id = json.loads(next(lines).removeprefix("data: "))["id"]
        asked = {"id": id, "action": "reasoning_end"}
        answer = httpx.post(url + "/v1/chat/completions/control", json=asked).json()
        assert answer["success"]
        rest = "".join(lines)
    assert '"content":"ok"' in rest
    end = time.monotonic() + 20  # what follows an answer in the server may still be on its way
    while httpx.post(url + "/v1/chat/completions/control", json=asked).json()["success"]:
        assert time.monotonic() < end
    assert engine.requests[0].reasoning.n_tokens == -1


def test_input_tokens(url: str, engine: Any) -> None:
    answer = post(url, "/v1/chat/completions/input_tokens")
    post(url, "/chat/completions")
    assert answer == {
        "object": "response.input_tokens",
        "input_tokens": len(engine.requests[0].prompt),
    }
