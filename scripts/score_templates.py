"""Compares the parsing of chat outputs with the records of what llama.cpp makes of them.

    python scripts/score_templates.py [directory of the records' README]

prints the table of docs/templates.md: for each template how many recorded outputs give the
same content, reasoning, calls and arguments, in one piece and byte by byte, and how many
prompts are equal to the byte.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from gguf_serve.engine.chat.delta import ChatDelta
from gguf_serve.engine.chat.format import ChatFormat, chat_format
from gguf_serve.engine.chat.rendering.template import ChatTemplate

SHARED = Path(__file__).resolve().parents[2] / "shared"
CLOCK = datetime(2026, 1, 2, 3, 4, 5)  # the records'


class Message(NamedTuple):
    content: str
    reasoning: str
    calls: list[tuple[str, str, str]]  # name, id, arguments


def records(path: Path, *kinds: str) -> Iterator[dict[str, Any]]:
    """The records of one file; of renders those that llama.cpp does not refuse."""
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] in kinds and "prompt" in record:
            yield record


@functools.cache
def compiled(path: Path, bos_token: str, eos_token: str) -> ChatTemplate:
    source = path.read_text(encoding="utf-8")
    return ChatTemplate(source, bos_token=bos_token, eos_token=eos_token, now=lambda: CLOCK)


def format_of(record: dict[str, Any], templates: Path) -> ChatFormat:
    request = record["request"]
    return chat_format(
        compiled(templates / record["template"], request["bos_token"], request["eos_token"]),
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
        reads_unmarked=False,  # llama.cpp has no such calls
    )


def deltas(chat: ChatFormat, raw: str, step: int, is_partial: bool) -> Iterator[ChatDelta]:
    """What comes of an output in pieces of ``step`` characters, and of its end if it has one."""
    parser = chat.parser()
    for start in range(0, max(len(raw), 1), step):
        yield parser.push(raw[start : start + step])
    if not is_partial:
        yield parser.finish()


def joined(pieces: Iterable[ChatDelta]) -> Message:
    """The message; AssertionError if a call does not begin with its name, or has it twice."""
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
    """White space around texts does not count, and arguments are equal as JSON."""
    expected = record["parsed"]
    if got.content.strip() != expected["content"].strip():
        return False
    if got.reasoning.strip() != expected["reasoning_content"].strip():
        return False
    theirs = expected["tool_calls"]
    return [call[:2] for call in got.calls] == [(c["name"], c["id"]) for c in theirs] and all(
        same_arguments(ours[2], call["arguments"], record["partial"])
        for ours, call in zip(got.calls, theirs, strict=True)
    )


def same_arguments(ours: str, theirs: str, is_partial: bool) -> bool:
    if is_partial:  # llama.cpp writes the opening brace before the model does
        return ours.rstrip() == theirs.rstrip() or (ours, theirs) == ("", "{")
    return bool(json.loads(ours) == json.loads(theirs))


def is_read(record: dict[str, Any], chat: ChatFormat) -> bool:
    raw, is_partial = record["raw"], record["partial"]
    steps = (max(len(raw), 1), 1)
    return all(is_equal(joined(deltas(chat, raw, step, is_partial)), record) for step in steps)


def row(template: Path, shared: Path) -> str:
    outputs = equal_outputs = prompts = equal_prompts = 0
    name, path = "none", shared / "conformance" / "chat" / f"{template.stem}.jsonl"
    for record in records(path, "parse", "render"):
        chat = format_of(record, shared / "templates")
        name = chat.turn.layout.name
        prompts += 1
        equal_prompts += chat.prompt == record["prompt"]
        if record["kind"] == "parse" and not record.get("error") and not record.get("malformed"):
            outputs += 1
            equal_outputs += is_read(record, chat)
    scores = f"{equal_outputs} of {outputs} | {equal_prompts} of {prompts}"
    return f"| {template.stem} | {name} | {scores} |"


def main() -> None:
    shared = Path(sys.argv[1]) if len(sys.argv) > 1 else SHARED
    print("| template | layout | outputs | prompts |\n|---|---|---|---|")
    for template in sorted((shared / "templates").glob("*.jinja"), key=lambda p: p.stem.lower()):
        print(row(template, shared))


if __name__ == "__main__":
    main()
