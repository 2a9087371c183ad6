"""Recorded outputs of models through the HTTP API: every dialect gives the same answer.

What is right is decided by tests/engine/chat, on the same records; here a direct use of the
parser is compared with what clients receive, whole and streamed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from gguf_serve.engine.chat.format import chat_format
from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.request import Delta, Event, Finished, Request, Started, Timings
from gguf_serve.server.app import create_app
from gguf_serve.server.requests.service import Service

SHARED = Path(__file__).resolve().parents[3] / "shared"
FILES = sorted(
    path
    for path in (SHARED / "conformance/chat").glob("*.jsonl")
    if (SHARED / "templates" / f"{path.stem}.jinja").exists()
)
needs_shared = pytest.mark.skipif(not FILES, reason="needs ../shared/conformance/chat")
SIZE = 3  # characters of a piece of text


class Answer(NamedTuple):
    content: str
    reasoning: str
    calls: list[tuple[str, Any]]

    @classmethod
    def of(cls, content: str | None, reasoning: str | None, calls: list[tuple[str, str]]) -> Answer:
        read = [(name, parsed(arguments)) for name, arguments in calls]
        return cls((content or "").strip(), (reasoning or "").strip(), read)


def parsed(arguments: str) -> Any:
    """The arguments as the dialects with objects show them, also those that were cut off."""
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        return {"INVALID_JSON": arguments}
    return value if isinstance(value, dict) else {"INVALID_JSON": arguments}


def simple(record: dict[str, Any]) -> bool:
    """A conversation that every dialect can say: texts only, nothing continued."""
    request = record["request"]
    plain = all(
        set(message) == {"role", "content"} and isinstance(message["content"], str)
        and message["role"] in ("user", "system")
        for message in request["messages"]
    )  # fmt: skip
    options = ("grammar", "json_schema", "continue_final_message", "chat_template_kwargs")
    unusual = any(request.get(name) for name in options)
    usual_format = request.get("reasoning_format", "auto") in ("auto", "deepseek")
    generates = request.get("add_generation_prompt", True)
    return bool(
        record["kind"] == "parse" and plain and not unusual and usual_format and generates
        and request.get("tool_choice", "auto") == "auto"
    )  # fmt: skip


def records(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [record for record in found if simple(record)]


class InstantEngine:
    """Says the text at once, when it is asked."""

    n_ctx, n_slots, healthy, fault = 10**6, 4, True, ""
    speech = None

    def __init__(self, info: Any, tokenizer: Any, template: ChatTemplate, text: str) -> None:
        self.info, self.tokenizer, self.chat_template, self.text = info, tokenizer, template, text

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> int:
        on_event(Started(len(request.prompt), 0, 0))
        for start in range(0, len(self.text), SIZE):
            on_event(Delta(self.text[start : start + SIZE], (1,)))
        on_event(Finished("eos", Timings(predicted_n=1)))
        return 0

    def compile(self, constraint: Any) -> None: ...
    def cancel(self, ticket: Any) -> None: ...

    def adapters(self) -> tuple[()]:
        return ()


def expected(template: ChatTemplate, record: dict[str, Any]) -> Answer:
    request = record["request"]
    form = chat_format(
        template,
        request["messages"],
        tools=request.get("tools") or None,
        template_kwargs={"enable_thinking": request.get("enable_thinking", True)},
    )
    parser = form.parser()
    parser.push("")
    deltas = [parser.push(record["raw"]), parser.finish()]
    calls: dict[int, list[str]] = {}
    for call in (call for delta in deltas for call in delta.calls):
        one = calls.setdefault(call.index, ["", ""])
        one[0] += call.name
        one[1] += call.arguments
    return Answer.of(
        "".join(delta.content for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        [(name, arguments) for name, arguments in calls.values()],
    )


def chat_body(request: dict[str, Any]) -> dict[str, Any]:
    kwargs = {"enable_thinking": request.get("enable_thinking", True)}
    body = {"messages": request["messages"], "chat_template_kwargs": kwargs}
    return body | ({"tools": request["tools"]} if request.get("tools") else {})


def functions(request: dict[str, Any]) -> list[dict[str, Any]]:
    return [tool["function"] for tool in request.get("tools") or []]


def split_system(request: dict[str, Any]) -> tuple[str | None, list[dict[str, Any]]]:
    first, *rest = request["messages"]
    return (first["content"], rest) if first["role"] == "system" else (None, [first, *rest])


def anthropic_body(request: dict[str, Any]) -> dict[str, Any]:
    system, messages = split_system(request)
    tools = [
        {
            "name": f["name"],
            "description": f.get("description", ""),
            "input_schema": f["parameters"],
        }
        for f in functions(request)
    ]
    kwargs = {"enable_thinking": request.get("enable_thinking", True)}
    body = {"messages": messages, "max_tokens": 99, "tools": tools, "chat_template_kwargs": kwargs}
    return body | ({"system": system} if system else {})


def responses_body(request: dict[str, Any]) -> dict[str, Any]:
    body = chat_body(request)
    messages = body.pop("messages")
    tools = [{"type": "function", **function} for function in functions(request)]
    return body | {"input": messages, "tools": tools}


def ollama_body(request: dict[str, Any]) -> dict[str, Any]:
    body = {"messages": request["messages"], "tools": request.get("tools") or []}
    return body | {"think": request.get("enable_thinking", True)}


def sse(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def openai_answer(text: str, stream: bool) -> Answer:
    if not stream:
        message = json.loads(text)["choices"][0]["message"]
        calls = [call["function"] for call in message.get("tool_calls", [])]
        return Answer.of(
            message["content"],
            message.get("reasoning_content"),
            [(call["name"], call["arguments"]) for call in calls],
        )
    content, reasoning, found = "", "", {}
    for chunk in sse(text):
        delta = chunk["choices"][0]["delta"]
        content += delta.get("content") or ""
        reasoning += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", []):
            one = found.setdefault(call["index"], ["", ""])
            one[0] += call["function"].get("name", "")
            one[1] += call["function"].get("arguments", "")
    return Answer.of(content, reasoning, [(name, given) for name, given in found.values()])


def anthropic_answer(text: str, stream: bool) -> Answer:
    if not stream:
        blocks = json.loads(text)["content"]
    else:
        blocks = []
        for event in sse(text):
            if event["type"] == "content_block_start":
                blocks.append(dict(event["content_block"]) | {"json": ""})
            elif event["type"] == "content_block_delta":
                delta = event["delta"]
                for theirs, ours in (("text",) * 2, ("thinking",) * 2, ("partial_json", "json")):
                    if theirs in delta:
                        blocks[event["index"]][ours] += delta[theirs]
    calls = [block for block in blocks if block["type"] == "tool_use"]
    return Answer.of(
        "".join(block["text"] for block in blocks if block["type"] == "text"),
        "".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        [(call["name"], call["json"] if stream else json.dumps(call["input"])) for call in calls],
    )


def responses_answer(text: str, stream: bool) -> Answer:
    if stream:
        *_, last = sse(text)
        assert last["type"] == "response.completed"
        response = last["response"]
    else:
        response = json.loads(text)
    items = response["output"]
    parts = {
        kind: "".join(item["content"][0]["text"] for item in items if item["type"] == kind)
        for kind in ("message", "reasoning")
    }
    calls = [item for item in items if item["type"] == "function_call"]
    return Answer.of(
        parts["message"], parts["reasoning"], [(call["name"], call["arguments"]) for call in calls]
    )


def ollama_answer(text: str, stream: bool) -> Answer:
    messages = [json.loads(line)["message"] for line in text.splitlines()]
    calls = [call["function"] for message in messages for call in message.get("tool_calls", [])]
    return Answer.of(
        "".join(message["content"] for message in messages),
        "".join(message.get("thinking", "") for message in messages),
        [(call["name"], json.dumps(call["arguments"])) for call in calls],
    )


DIALECTS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[[str, bool], Answer]]] = {
    "/v1/chat/completions": (chat_body, openai_answer),
    "/v1/messages": (anthropic_body, anthropic_answer),
    "/v1/responses": (responses_body, responses_answer),
    "/api/chat": (ollama_body, ollama_answer),
}


async def compare(fakes: Any, path: Path, found: list[dict[str, Any]]) -> int:
    source = (SHARED / "templates" / f"{path.stem}.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(source, bos_token="", eos_token="")
    engine = InstantEngine(fakes.info, fakes.tokenizer, template, "")
    transport = httpx.ASGITransport(create_app(Service(engine)))  # type: ignore[arg-type]
    n_compared = 0
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for record in found:
            engine.text = record["raw"]
            answer = expected(template, record)
            for endpoint, (body, read) in DIALECTS.items():
                for stream in (False, True):
                    asked = body(record["request"]) | {"stream": stream}
                    response = await client.post(endpoint, json=asked)
                    where = f"{record['id']} {endpoint} stream={stream}"
                    assert response.status_code == 200, f"{where}: {response.text}"
                    assert read(response.text, stream) == answer, where
                    n_compared += 1
    return n_compared


@needs_shared
@pytest.mark.parametrize("path", FILES[::6], ids=lambda path: path.stem)
def test_every_dialect_gives_the_same_answer(fakes: Any, path: Path) -> None:
    """The first, and the last, which has calls mostly, of a template's records."""
    found = records(path)
    asyncio.run(compare(fakes, path, found[:1] + found[-2:]))


@needs_shared
@pytest.mark.slow
def test_all_records_in_all_dialects(fakes: Any) -> None:
    counts = [asyncio.run(compare(fakes, path, records(path))) for path in FILES]
    assert sum(counts) > 1500
