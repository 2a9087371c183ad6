"""The grammars of calls and answers, driven byte by byte as the engine drives them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from score_templates import format_of, records

from gguf_serve.engine.chat.constrain import output_constraint
from gguf_serve.engine.chat.format import ChatFormat, ChatParser, chat_format
from gguf_serve.engine.chat.formats.tagged_layouts import LFM_2
from gguf_serve.engine.chat.layout import Turn
from gguf_serve.engine.chat.rendering.selection import named_template
from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.grammar.compile import Grammars
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.grammar.guide import Guide

USER = {"role": "user", "content": "U"}
# llama.cpp lets a second call pass where the request wants one at most.
SECOND_CALL = {"Bielik-11B-v3.0-Instruct/parse/008"}
# It lets a code fence or a line's end around JSON pass, which nobody has asked for.
AROUND_JSON = {
    *("meta-llama-Llama-3.1-8B-Instruct/parse/002", "meta-llama-Llama-3.1-8B-Instruct/parse/003"),
    "mistralai-Ministral-3-14B-Reasoning-2512/parse/007",
}
# Thinking is open, and what comes instead of its end is no call: nothing is constrained yet.
NEVER_BEGINS = {"Kimi-K3/parse/001", "Kimi-K3/parse/003"}


class Bytes:
    """A vocabulary of bytes, an empty line, and the special tokens ``<...>`` and ``[...]``."""

    def __init__(self, special: list[str]) -> None:
        self.longer = ["\n\n", *sorted(special, key=len, reverse=True)]
        self.pieces = [bytes([i]) for i in range(256)] + [s.encode() for s in self.longer] + [b""]
        self.n_vocab = len(self.pieces)
        self.eog_ids = frozenset([self.n_vocab - 1])

    def is_special(self, id: int) -> bool:
        return id > 256

    def piece(self, id: int) -> bytes:
        return self.pieces[id]

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        ids: list[int] = []
        while text:
            found = next((k for k, s in enumerate(self.longer) if text.startswith(s)), None)
            ids += text[0].encode() if found is None else [256 + found]
            text = text[1 if found is None else len(self.longer[found]) :]
        return ids


def verdict(constraint: Constraint, text: str) -> str:
    """What the constraint says of the text: complete, incomplete, free (it never began), or
    before what it refuses the text."""
    marks = [t for t in constraint.preserved if t[:1] + t[-1:] in ("<>", "[]")]
    vocabulary = Bytes(marks)
    guide = Guide(constraint, Grammars(vocabulary, vocabulary.n_vocab))
    words = np.zeros((vocabulary.n_vocab + 31) // 32, np.int32)

    def allows(token: int) -> bool:
        guide.fill(words)
        return bool(words.view(np.uint32)[token >> 5] >> np.uint32(token & 31) & 1)

    so_far = b""
    for token in vocabulary.encode(text):
        if guide.constrains and not allows(token):
            return f"refused after {so_far[-40:]!r}: {vocabulary.piece(token)!r}"
        guide.accept(token)
        so_far += vocabulary.piece(token)
    if not guide.constrains:
        return "free"
    return "complete" if allows(min(vocabulary.eog_ids)) else "incomplete"


@pytest.fixture(scope="module")
def cases(shared: Path) -> list[tuple[dict[str, Any], ChatFormat]]:
    """The recorded outputs that llama.cpp's own grammars accept."""
    paths = sorted((shared / "conformance" / "chat").glob("*.jsonl"))
    found = [record for path in paths for record in records(path, "parse")]
    held = [record for record in found if record["grammar"].get("accepts_raw")]
    return [(record, format_of(record, shared / "templates")) for record in held]


def test_every_well_formed_output_is_accepted_from_where_it_is_constrained(cases):
    refused, compared = {}, 0
    for record, chat in cases:
        if record["id"] in SECOND_CALL | AROUND_JSON | NEVER_BEGINS:
            continue
        assert chat.grammar is not None, record["id"]
        found = verdict(chat.grammar, record["raw"])
        compared += 1
        if found != "complete":
            refused[record["id"]] = found
    assert refused == {}
    assert compared > 200


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"n": {"type": "integer"}, "s": {"type": "string"}},
                "required": ["n"],
            },
        },
    }
    for name in ("add", "get")
]
CALL = '<tool_call>\n{"name": "add", "arguments": {"n": 1}}\n</tool_call>'


def hermes(shared: Path, **request: Any) -> Constraint:
    source = (shared / "templates" / "Qwen-Qwen2.5-7B-Instruct.jinja").read_text(encoding="utf-8")
    grammar = chat_format(ChatTemplate(source), [USER], tools=TOOLS, **request).grammar
    assert grammar is not None
    return grammar


def test_calls_that_are_optional_hold_from_their_start_on(shared):
    grammar = hermes(shared)
    assert verdict(grammar, "Hello <b>") == "free"
    assert verdict(grammar, "Well: " + CALL) == "complete"
    assert verdict(grammar, CALL + CALL).startswith("refused after")
    assert verdict(grammar, CALL.replace("add", "sub")).startswith("refused after")
    assert verdict(grammar, CALL.replace("1", '"1"')).startswith("refused after")
    assert verdict(grammar, CALL.replace('"n": 1', "")).startswith("refused after")
    assert verdict(hermes(shared, parallel_tool_calls=True), f"{CALL}\n{CALL}") == "complete"


def test_calls_that_are_required_come_at_once(shared):
    grammar = hermes(shared, tool_choice="required")
    assert grammar.triggers == ()
    assert verdict(grammar, CALL) == "complete"
    assert verdict(grammar, "Well: " + CALL).startswith("refused after b'': b'W'")
    assert verdict(grammar, "") == "incomplete"
    named = hermes(shared, tool_choice={"type": "function", "function": {"name": "get"}})
    assert verdict(named, CALL).startswith("refused after")
    assert verdict(named, CALL.replace("add", "get")) == "complete"


def test_no_tools_no_grammar():
    template = ChatTemplate(named_template("chatml"))
    assert chat_format(template, [USER]).grammar is None
    assert chat_format(template, [USER], tools=TOOLS, tool_choice="none").grammar is None


def test_an_answer_by_its_schema():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    template = ChatTemplate(named_template("chatml"))
    grammar = chat_format(template, [USER], json_schema=schema).grammar
    assert grammar is not None
    for text in ('{"a": 1}', '{"a":1}'):
        assert verdict(grammar, text) == "complete"
    for text in ('{"a": "1"}', "Well", '{"b": 1}', '```json\n{"a": 1}\n```'):
        assert verdict(grammar, text).startswith("refused after")


@pytest.mark.parametrize("value", ['say "hi"', "C:\\new", "two\nlines"])
def test_a_choice_is_written_so_that_it_is_read(value: str) -> None:
    """LFM2's calls are Python's: quotes and backslashes of a choice are escaped."""
    tools = {"say": {"properties": {"text": {"enum": [value]}}, "required": ["text"]}}
    turn = Turn(LFM_2, tools)
    constraint = output_constraint(
        turn, "", is_required=True, is_parallel=False, json_schema=None, strict=()
    )
    assert constraint is not None
    call = f"<|tool_call_start|>[say(text={json.dumps(value)})]<|tool_call_end|>"
    assert verdict(constraint, call) == "complete"
    arguments = "".join(part.arguments for part in ChatParser(turn).push(call).calls)
    assert json.loads(arguments) == {"text": value}
