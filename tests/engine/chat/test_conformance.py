"""Outputs of 70 models' templates: what llama.cpp makes of them, and so do we.

How they are compared is in scripts/score_templates.py; the README beside the records says why.
"""

from pathlib import Path
from typing import Any

import pytest
from score_templates import deltas, format_of, is_equal, joined, records

from gguf_serve.engine.chat.format import ChatFormat

MAX_HELD_BACK = 27  # characters longer than llama.cpp; the longest mark is one of these

# Its generation prompt opens the thinking twice.
DIFFERENT_OPENING = {"llama-cpp-rwkv-world/render/018"}
# What it gives as special tokens is none here: code fences, tokens put together, a call's id;
# or the end of generation, which no parser needs.
NO_TOKENS = {
    *("```", "```json", "function<｜tool▁sep｜>", "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
    *("call00001<|tool_call:name|>", "<｜end▁of▁sentence｜>"),
}


@pytest.fixture(scope="module")
def cases(shared: Path) -> list[tuple[dict[str, Any], ChatFormat]]:
    """Every record that llama.cpp does not refuse to render, and its format."""
    names = [path.stem for path in sorted((shared / "templates").glob("*.jinja"))]
    paths = [shared / "conformance" / "chat" / f"{name}.jsonl" for name in names]
    found = [record for path in paths for record in records(path, "parse", "render")]
    return [(record, format_of(record, shared / "templates")) for record in found]


@pytest.mark.parametrize("step", [1, 3, 1_000_000])
def test_every_output_is_read_as_recorded(cases, step):
    compared, different = 0, []
    for record, chat in cases:
        if record["kind"] != "parse" or record.get("error") or record.get("malformed"):
            continue
        message = joined(deltas(chat, record["raw"], step, record["partial"]))
        compared += 1
        if not is_equal(message, record):
            different.append(record["id"])
    assert different == []
    assert compared == 566


def test_what_llama_cpp_refuses_becomes_content_and_calls(cases):
    compared = 0
    for record, chat in cases:
        if record["kind"] != "parse" or not record.get("error"):
            continue
        whole = joined(deltas(chat, record["raw"], 1_000_000, False))
        assert whole == joined(deltas(chat, record["raw"], 1, False))
        after_calls = record["raw"].rpartition("</tool_call>\n")[2]  # all of it without calls
        assert whole.content == after_calls, record["id"]
        compared += 1
    assert compared == 18


def test_openings_stops_tags_and_tokens_are_those_recorded(cases):
    for record, chat in cases:
        if record["id"] not in DIFFERENT_OPENING:
            assert chat.generation_prompt == record["generation_prompt"], record["id"]
        assert list(chat.stops) == record["additional_stops"], record["id"]
        tags = chat.thinking and (chat.thinking.start, list(chat.thinking.ends))
        recorded = (record["thinking_start_tag"], record["thinking_end_tags"])
        assert (tags or ("", [])) == recorded, record["id"]
        assert set(chat.preserved_tokens) >= set(record["preserved_tokens"]) - NO_TOKENS
    assert len(cases) == 1556


def test_nothing_is_held_back_much_longer_than_there(cases):
    compared = 0
    for record, chat in cases:
        # The last step of Mistral Nemo's gives the name again, with the id.
        if not record.get("stream") or "Mistral-Nemo" in record["id"]:
            continue
        thoughts = record["parsed"].get("reasoning_content") or ""
        if any(mark in thoughts for mark in chat.turn.call_marks()[0]):
            continue  # which are calls if the thinking is never closed, so that they wait
        sent = [0]
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
