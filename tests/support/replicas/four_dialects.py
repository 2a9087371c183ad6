"""Requests in four dialects, streamed or not; an answer that is cut or an error fails."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import httpx

CHAT, RESPONSES, ANTHROPIC, OLLAMA = (
    "/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat",
)  # fmt: skip
PATHS = (CHAT, RESPONSES, ANTHROPIC, OLLAMA)


class Asked(NamedTuple):
    path: str
    stream: bool
    prompt: str
    seed: int  # -1: greedy
    n_tokens: int


def many(n: int, n_tokens: int) -> list[Asked]:
    """All dialects in turn; half of them stream, half of them are greedy."""
    return [
        Asked(
            PATHS[i % 4], i // 4 % 2 == 0, f"Write story {i} about a robot.",
            -1 if i // 8 % 2 else i, n_tokens,
        )
        for i in range(n)
    ]  # fmt: skip


def ask(url: str, asked: Asked, seconds: float) -> str:
    """The whole text of the answer."""
    with httpx.stream("POST", url + asked.path, json=body(asked), timeout=seconds) as got:
        if got.status_code != 200:
            raise AssertionError(f"{asked}: {got.status_code} {got.read()!r}")
        if not asked.stream:
            return whole(asked.path, json.loads(got.read()))
        text, ended = "", False
        for line in got.iter_lines():
            data = line.removeprefix("data: ")
            if not line or line.startswith(("event:", ":")):
                continue
            assert not ended, f"{asked}: {line} after the end"
            message = {} if data == "[DONE]" else json.loads(data)
            assert "error" not in message, f"{asked}: {line}"
            text += piece(asked.path, message)
            ended = is_end(asked.path, data, message)
        assert ended, f"{asked}: cut after {text!r}"
        return text


def body(asked: Asked) -> dict[str, Any]:
    sampling = {"temperature": 0.0} if asked.seed < 0 else {"temperature": 0.8, "seed": asked.seed}
    common = {"model": "any", "stream": asked.stream}
    messages = [{"role": "user", "content": asked.prompt}]
    match asked.path:
        case "/v1/responses":
            limit = {"max_output_tokens": asked.n_tokens}
            return {**common, **sampling, **limit, "input": asked.prompt}
        case "/api/chat":
            options = {**sampling, "num_predict": asked.n_tokens}
            return {**common, "messages": messages, "options": options}
        case _:
            return {**common, **sampling, "messages": messages, "max_tokens": asked.n_tokens}


def whole(path: str, answer: dict[str, Any]) -> str:
    match path:
        case "/v1/chat/completions":
            return str(answer["choices"][0]["message"]["content"])
        case "/v1/responses":
            return str(answer["output"][0]["content"][0]["text"])
        case "/v1/messages":
            return str(answer["content"][0]["text"])
        case _:
            return str(answer["message"]["content"])


def piece(path: str, message: dict[str, Any]) -> str:
    match path:
        case "/v1/chat/completions":
            choices = message.get("choices") or [{"delta": {}}]
            return choices[0]["delta"].get("content") or ""
        case "/v1/responses":
            return message["delta"] if message["type"] == "response.output_text.delta" else ""
        case "/v1/messages":
            is_text = message["type"] == "content_block_delta"
            return message["delta"].get("text", "") if is_text else ""
        case _:
            return str(message["message"]["content"])


def is_end(path: str, data: str, message: dict[str, Any]) -> bool:
    match path:
        case "/v1/chat/completions":
            return data == "[DONE]"
        case "/v1/responses":
            return message["type"] in ("response.completed", "response.incomplete")
        case "/v1/messages":
            return message["type"] == "message_stop"
        case _:
            return bool(message["done"])
