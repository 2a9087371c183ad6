"""What single model families need beyond what their own template does.

A family is recognized by a text that only its template holds. Each of these mirrors what
llama-server does for that family; everything general is in messages.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gguf_serve.engine.chat.caps import Message

_STEPFUN = "<im_patch>"
_DEEPSEEK_V4 = "dsml_token + 'tool_calls>"
_GEMMA4 = "<|tool_response>"
_GEMMA4_SKIPS_TOOL_ROLE = "['role'] != 'tool'"  # the later template folds results itself
_GEMMA4_TURN = "<|turn>model\n"


def prepare(source: str, messages: list[Message]) -> list[Message]:
    """Adapted messages as the template of this source expects them."""
    if _STEPFUN in source:
        return [_trimmed(message) for message in messages]
    if _DEEPSEEK_V4 in source:
        return _results_in_order_of_calls(messages)
    if _GEMMA4 in source and _GEMMA4_SKIPS_TOOL_ROLE not in source:
        return _results_into_turn(messages)
    return messages


def variables(source: str, json_schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """Variables that only this family's template reads."""
    if json_schema is not None and _DEEPSEEK_V4 in source:
        return {"response_format": dict(json_schema)}
    return {}


def complete(source: str, prompt: str) -> str:
    """Open the model's turn where the template leaves it out, after a tool's result."""
    if _GEMMA4 in source and prompt.endswith("<turn|>\n"):
        return prompt + _GEMMA4_TURN
    return prompt


def _trimmed(message: Message) -> Message:
    trimmed = dict(message)
    content = message["content"]
    if isinstance(content, str):
        trimmed["content"] = content.strip()
    else:
        trimmed["content"] = [{**part, "text": part["text"].strip()} for part in content]
    if isinstance(message.get("reasoning_content"), str):
        trimmed["reasoning_content"] = message["reasoning_content"].strip()
    return trimmed


def _results_in_order_of_calls(messages: list[Message]) -> list[Message]:
    """Each run of tool messages sorted as the calls before it; unknown ids keep their place."""
    ordered: list[Message] = []
    run: list[Message] = []
    order: dict[str, int] = {}
    for message in [*messages, None]:
        if message is not None and message["role"] == "tool":
            run.append(message)
            continue
        # Stable: results without a known id all sort as the first call.
        ordered += sorted(run, key=lambda result: order.get(result.get("tool_call_id", ""), 0))
        run = []
        if message is not None:
            calls = message.get("tool_calls") or []
            order = {call.get("id", ""): i for i, call in enumerate(calls) if call.get("id")}
            ordered.append(message)
    return ordered


def _results_into_turn(messages: list[Message]) -> list[Message]:
    """Tool results, and the answer after them, become part of the message with the calls."""
    merged: list[Message] = []
    for message in messages:
        turn = merged[-1] if merged else {}
        if message["role"] == "tool" and turn.get("tool_calls"):
            # Copies, since these may be the caller's; the text before a call is dropped, as
            # the template would write it after the result.
            results = [*turn.get("tool_responses", []), _result(message, turn)]
            merged[-1] = {**turn, "content": "", "tool_responses": results}
        elif _answers(message, turn):
            merged[-1] = {**turn, "content": message["content"]}
        else:
            merged.append(message)
    return merged


def _answers(message: Message, turn: Message) -> bool:
    is_answer = message["role"] == "assistant" and not message.get("tool_calls")
    return is_answer and bool(turn.get("tool_responses")) and not turn["content"]


def _result(message: Message, turn: Message) -> dict[str, Any]:
    calls = {call.get("id"): call["function"]["name"] for call in turn["tool_calls"]}
    name = message.get("name") or calls.get(message.get("tool_call_id"), "")
    try:
        response = json.loads(message["content"])
    except (ValueError, TypeError):
        response = message["content"]
    return {"name": name, "response": response}
