"""Outputs of 70 models' templates: what llama.cpp makes of them, and so do we.

The README beside the records says how they are compared: white space around content and
reasoning does not count, and arguments are equal as JSON.
"""

import functools
import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engine.chat.delta import ChatDelta
from engine.chat.format import ChatFormat, chat_format
from engine.chat.template import ChatTemplate

CLOCK = datetime(2026, 1, 2, 3, 4, 5)
MAX_HELD_BACK = 27  # characters longer than llama.cpp; the longest mark is one of these

# Its generation prompt opens the thinking twice.
DIFFERENT_OPENING = {"llama-cpp-rwkv-world/render/018"}
# What it gives as special tokens is none here: code fences, tokens put together, a call's id;
# or the end of generation, which no parser needs.
NO_TOKENS = {
    *("```", "```json", "function<｜tool▁sep｜>", "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
    *("call00001<|tool_call:name|>", "<｜end▁of▁sentence｜>"),
}


class Message(NamedTuple):
    content: str
    reasoning: str
    calls: list[tuple[str, str, str]]  # name, id, arguments


@functools.cache
def compiled(path: Path, bos_token: str, eos_token: str) -> ChatTemplate:
    source = path.read_text(encoding="utf-8")
    return ChatTemplate(source, bos_token=bos_token, eos_token=eos_token, now=lambda: CLOCK)


def format_of(shared: Path, record: dict[str, Any]) -> ChatFormat:
    request = record["request"]
    path = shared / "templates" / record["template"]
    return chat_format(
        compiled(path, request["bos_token"], request["eos_token"]),
        request["messages"],
        tools=request["tools"],
        tool_choice=request["tool_choice"],
        parallel_tool_calls=request["parallel_tool_calls"],
        reasoning_format=request["reasoning_format"],
        template_kwargs={
            "enable_thinking": request["enable_thinking"],
            **request["chat_template_kwargs"],
        },
        add_generation_prompt=request["add_generation_prompt"],
        continue_final_message=request["continue_final_message"],
        json_schema=request["json_schema"],
    )


def records(shared: Path, *kinds: str) -> Iterator[dict[str, Any]]:
    for template in sorted((shared / "templates").glob("*.jinja")):
        path = shared / "conformance" / "chat" / f"{template.stem}.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["kind"] in kinds and "prompt" in record:
                yield record


def deltas(chat: ChatFormat, raw: str, step: int, is_partial: bool) -> Iterator[ChatDelta]:
    parser = chat.parser()
    for start in range(0, max(len(raw), 1), step):
        yield parser.push(raw[start : start + step])
    if not is_partial:
        yield parser.finish()


def joined(pieces: Iterable[ChatDelta]) -> Message:
    content = reasoning = ""
    calls: list[tuple[str, str, str]] = []
    for piece in pieces:
        content += piece.content
        reasoning += piece.reasoning
        for call in piece.calls:
            if call.index == len(calls):
                assert call.name
                calls.append((call.name, call.id, call.arguments))
            else:
                assert (call.index, call.name, call.id) == (len(calls) - 1, "", "")
                name, id, arguments = calls[-1]
                calls[-1] = (name, id, arguments + call.arguments)
    return Message(content, reasoning, calls)


def is_equal(got: Message, record: dict[str, Any]) -> bool:
    expected = record["parsed"]
    texts = (expected["content"].strip(), expected["reasoning_content"].strip())
    if (got.content.strip(), got.reasoning.strip()) != texts:
        return False
    if [(name, id) for name, id, _ in got.calls] != [
        (call["name"], call["id"]) for call in expected["tool_calls"]
    ]:
        return False
    pairs = zip(got.calls, expected["tool_calls"], strict=True)
    return all(
        same_arguments(ours[2], theirs["arguments"], record["partial"]) for ours, theirs in pairs
    )


def same_arguments(ours: str, theirs: str, is_partial: bool) -> bool:
    if is_partial:  # llama.cpp writes the opening brace before the model does
        return ours.rstrip() == theirs.rstrip() or (ours, theirs) == ("", "{")
    return bool(json.loads(ours) == json.loads(theirs))


@pytest.mark.parametrize("step", [1, 3, 1_000_000])
def test_every_output_is_read_as_recorded(shared, step):
    compared, different = 0, []
    for record in records(shared, "parse"):
        if record.get("error") or record.get("malformed"):
            continue
        chat = format_of(shared, record)
        message = joined(deltas(chat, record["raw"], step, record["partial"]))
        compared += 1
        if not is_equal(message, record):
            different.append(record["id"])
    assert different == []
    assert compared == 566


def test_what_llama_cpp_refuses_becomes_content_and_calls(shared):
    compared = 0
    for record in records(shared, "parse"):
        if not record.get("error"):
            continue
        chat = format_of(shared, record)
        whole = joined(deltas(chat, record["raw"], 1_000_000, False))
        assert whole == joined(deltas(chat, record["raw"], 1, False))
        after_calls = record["raw"].rpartition("</tool_call>\n")[2]  # all of it without calls
        assert whole.content == after_calls, record["id"]
        compared += 1
    assert compared == 18


def test_openings_stops_tags_and_tokens_are_those_recorded(shared):
    compared = 0
    for record in records(shared, "parse", "render"):
        chat = format_of(shared, record)
        if record["id"] not in DIFFERENT_OPENING:
            assert chat.generation_prompt == record["generation_prompt"], record["id"]
        assert list(chat.stops) == record["additional_stops"], record["id"]
        tags = chat.thinking and (chat.thinking.start, list(chat.thinking.ends))
        recorded = (record["thinking_start_tag"], record["thinking_end_tags"])
        assert (tags or ("", [])) == recorded, record["id"]
        assert set(chat.preserved_tokens) >= set(record["preserved_tokens"]) - NO_TOKENS
        compared += 1
    assert compared == 1556


def test_nothing_is_held_back_much_longer_than_there(shared):
    compared = 0
    for record in records(shared, "parse"):
        # The last step of Mistral Nemo's gives the name again, with the id.
        if not record.get("stream") or "Mistral-Nemo" in record["id"]:
            continue
        chat, sent = format_of(shared, record), [0]
        for piece in deltas(chat, record["raw"], 1, True):
            sent.append(sent[-1] + visible(piece.content, piece.reasoning))
            for call in piece.calls:
                sent[-1] += visible(call.name, call.arguments)
        theirs = 0
        for place, kind, *texts in record["stream"]:
            theirs += visible(*(texts if kind != "t" else (texts[1], texts[3])))
            ours = sent[min(place + MAX_HELD_BACK, len(record["raw"]))]
            assert ours >= theirs - (kind == "t"), (record["id"], place)
            compared += 1
    assert compared > 10_000


def visible(*texts: str) -> int:
    """Characters that are no white space."""
    return sum(len("".join(text.split())) for text in texts)
