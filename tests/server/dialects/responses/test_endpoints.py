"""OpenAI's Responses, through the openai client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gguf_serve.engine.request import Delta, Event, Finished, Progress, Request, Started, Timings
from gguf_serve.server.dialects.responses.input import chat_body
from gguf_serve.server.dialects.sealed import sealed

TEXT = "Hello wörld"
N_BYTES = len(TEXT.encode())
MISC = Path(__file__).resolve().parents[5] / "shared/conformance/chat/misc.jsonl"


@pytest.fixture
def engine(fakes: Any) -> Any:
    return fakes.engine()


@pytest.fixture
def url(serve: Any, engine: Any) -> str:
    return serve(engine)


def test_response(url: str, client: Any, engine: Any) -> None:
    answer = client(url).responses.create(
        model="m", input="hi", instructions="Be brief", max_output_tokens=50
    )
    assert answer.output_text == TEXT
    assert (answer.status, answer.object, answer.model) == (
        "completed",
        "response",
        "tiny.Q8_0.gguf",
    )
    assert answer.id.startswith("resp_")
    assert (answer.instructions, answer.max_output_tokens) == ("Be brief", 50)
    assert answer.usage.output_tokens == N_BYTES
    assert answer.usage.input_tokens_details.cached_tokens == 2
    assert engine.requests[0].max_tokens == 50
    assert engine.chat_template.asked()["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "hi"},
    ]


def test_stream(serve: Any, fakes: Any, client: Any) -> None:
    url = serve(fakes.engine(fakes.say("ab")))
    events = list(client(url).responses.create(model="m", input="hi", stream=True))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(10))
    assert events[6].text == "ab"
    assert events[2].item.id == events[4].item_id == events[8].item.id
    assert events[-1].response.output_text == "ab"
    assert events[-1].response.usage.output_tokens == 2
    assert events[0].response.output == []


def test_progress(serve: Any, fakes: Any) -> None:
    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        yield Started(4, 1, 0)
        yield Progress(4, 1, 1, 0.0)
        yield Progress(4, 1, 4, 5.2)
        yield Delta("a", (97,))
        yield Finished("eos", Timings(predicted_n=1))

    body = {"input": "hi", "stream": True, "return_progress": True}
    text = httpx.post(serve(fakes.engine(script)) + "/v1/responses", json=body).text
    events = [json.loads(part.partition("data: ")[2]) for part in text.split("\n\n") if part]
    shown = [event for event in events if "prompt_progress" in event]
    assert [event["prompt_progress"]["processed"] for event in shown] == [1, 4]
    assert {event["type"] for event in shown} == {"response.in_progress"}
    assert shown[0]["timings"]["cache_n"] == 1
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_stream_ends_without_done(url: str) -> None:
    body = {"input": "hi", "stream": True}
    text = httpx.post(url + "/v1/responses", json=body).text
    last = text.removesuffix("\n\n").split("\n\n")[-1]
    name, data = last.split("\n")
    assert name == "event: response.completed"
    assert json.loads(data.removeprefix("data: "))["timings"]["predicted_n"] == N_BYTES


def test_an_answer_that_is_cut_off_is_incomplete(url: str, client: Any) -> None:
    answer = client(url).responses.create(model="m", input="hi", max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    stream = client(url).responses.create(model="m", input="x", max_output_tokens=3, stream=True)
    assert list(stream)[-1].type == "response.incomplete"


def test_logprobs(url: str, client: Any) -> None:
    answer = client(url).responses.create(
        model="m", input="hi", include=["message.output_text.logprobs"], top_logprobs=2
    )
    logprobs = answer.output[0].content[0].logprobs
    assert [entry.token for entry in logprobs[:2]] == ["H", "e"]
    assert len(logprobs[0].top_logprobs) == 2


def test_input_tokens(url: str) -> None:
    for path in ("/v1/responses/input_tokens", "/responses/input_tokens"):
        answer = httpx.post(url + path, json={"input": [{"role": "user", "content": "hi"}]}).json()
        assert answer["object"] == "response.input_tokens"
        assert answer["input_tokens"] > 10


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True, "store": False}, "background"),
        ({"extra_body": {"prompt": {"id": "p"}}}, "prompt"),
        ({"extra_body": {"n": 2}}, "'n'"),
        ({"conversation": "c"}, "conversation"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "image input is not supported",
        ),
        ({"input": [{"type": "function_call", "name": "f"}]}, r"input\[0\]"),
        (
            {"input": [{"role": "user", "content": "x"}, {"id": "x"}]},
            r"input\[1\].*a type or a role",
        ),
        ({"input": [{"type": "message", "content": "x"}]}, r"input\[0\].*role"),
        ({"input": [{"role": "user", "content": [{"type": ["text"]}]}]}, r"content\[0\]"),
        ({"text": {"format": "x"}}, "text.format"),
        ({"tools": 5}, "tools"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_refusals_name_the_field(url: str, client: Any, fields: Any, name: str) -> None:
    given = {"input": "hi"} | fields
    with pytest.raises(openai.BadRequestError, match=name):
        client(url).responses.create(model="m", **given)


def test_items_become_messages() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    made = chat_body(
        {
            "input": [
                {"role": "developer", "content": "rules"},
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "q"}],
                },
                {"type": "reasoning", "summary": [], "encrypted_content": sealed("hmm")},
                {"type": "message", "role": "assistant", "content": "let me see"},
                call,
                call | {"call_id": "c2"},
                {"type": "web_search_call", "id": "ws"},
                {"type": "function_call_output", "call_id": "c1", "output": "1"},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": True}],
            "tool_choice": {"type": "function", "name": "f"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        }
    )
    text = [{"type": "text", "text": "let me see"}]
    assert [message["role"] for message in made["messages"]] == [
        "developer",
        "user",
        "assistant",
        "tool",
    ]
    turn = made["messages"][2]
    assert (turn["reasoning_content"], turn["content"]) == ("hmm", text)
    assert [call["id"] for call in turn["tool_calls"]] == ["c1", "c2"]
    assert made["tools"] == [
        {"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}
    ]
    assert made["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}},
    }


def test_thoughts_of_one_turn_are_joined() -> None:
    """A model that thinks again after its first words has two items of reasoning in a turn."""
    thoughts = [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]}
                for text in ("First. ", "Then.")]  # fmt: skip
    said = {"type": "message", "role": "assistant", "content": "Hm"}
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    (turn,) = chat_body({"input": [thoughts[0], said, thoughts[1], call]})["messages"]
    assert turn["reasoning_content"] == "First. Then."
    assert (turn["content"][0]["text"], turn["tool_calls"][0]["id"]) == ("Hm", "c1")


def test_rules_may_have_an_image() -> None:
    image = {"type": "input_image", "image_url": "data:;base64,AA=="}
    rules = {"role": "developer", "content": [image]}
    (message,) = chat_body({"instructions": "Look", "input": [rules]})["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "image_url"]


def test_instructions_and_the_developers_rules_are_one_message() -> None:
    rules = {"role": "developer", "content": [{"type": "input_text", "text": "rules"}]}
    user = {"role": "user", "content": "hi"}
    made = chat_body({"instructions": "Be brief", "input": [rules, user, rules]})["messages"]
    texts = [{"type": "text", "text": text} for text in ("Be brief", "rules")]
    assert [message["role"] for message in made] == ["system", "user", "developer"]
    assert made[0] == {"role": "system", "content": texts}


@pytest.mark.skipif(not MISC.exists(), reason="needs ../shared/conformance/chat")
def test_conversions_are_those_of_llama_server() -> None:
    records = [json.loads(line) for line in MISC.read_text().splitlines()]
    conversions = [record for record in records if record["kind"] == "convert"]
    assert len(conversions) == 3
    for record in conversions:
        assert chat_body(record["input"]) == record["output"], record["id"]
