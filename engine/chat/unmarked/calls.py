"""Calls by models that have forgotten the marks of their syntax.

Qwen2.5-Coder and others, asked with tools, answer with nothing but ``{"name": ..., "arguments":
{...}}``, often in a code fence. Such an answer is a call if all of it is JSON of that form, every
name is one of a tool on offer, and the arguments fit that tool's schema; anything else is text.

The template in files of Qwen2.5-Coder shows the form of a call with a doubled brace, ``{{"name":``,
which the model copies, with its end doubled or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from gguf_serve.engine.chat.delta import ChatDelta, ToolCallDelta
from gguf_serve.engine.chat.layout import Tools
from gguf_serve.engine.chat.unmarked.fits import fits

MOST_HELD = 2**16  # characters of an answer that may be a call
# What stands around such JSON, if anything; the fence may name its language.
WRAPPINGS = (("```", "```"), ("<tools>", "</tools>"), ("<function_call>", "</function_call>"))
LANGUAGES = ("json", "tool_call", "tool_code")
NAMES, ARGUMENTS = ("name", "function"), ("arguments", "parameters")
KEYS = (*NAMES, *ARGUMENTS, "type", "id")

Call = tuple[str, Mapping[str, Any]]


class UnmarkedCalls:
    """Between what a parser reads and who sees it: holds text back while it may be a call."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._held = ""
        self._is_open = bool(tools)  # the answer may still be one

    def take(self, delta: ChatDelta) -> ChatDelta:
        if not self._is_open:
            return delta
        self._held += delta.content
        if delta.calls or not self._may_be_calls():
            return replace(delta, content=self._release())
        return replace(delta, content="")

    def finish(self, delta: ChatDelta) -> ChatDelta:
        """The rest of the answer: as calls, or as text."""
        delta = self.take(delta)
        if not (self._is_open and self._held):
            return delta
        found = read_calls(self._held, self._tools)
        if not found:
            return replace(delta, content=self._release())
        self._is_open = False
        calls = (
            ToolCallDelta(index, "", name, json.dumps(arguments, ensure_ascii=False))
            for index, (name, arguments) in enumerate(found)
        )
        return replace(delta, calls=tuple(calls))

    def _release(self) -> str:
        text, self._held, self._is_open = self._held, "", False
        return text

    def _may_be_calls(self) -> bool:
        return len(self._held) <= MOST_HELD and may_be_calls(self._held, self._tools)


def may_be_calls(text: str, tools: Tools) -> bool:
    """Whether calls can begin as this text does."""
    text = text.lstrip()
    for opening, _ in WRAPPINGS:
        if opening.startswith(text):
            return True
        if text.startswith(opening):
            text = text.removeprefix(opening)
            if opening == "```" and any(name.startswith(text) for name in LANGUAGES):
                return True
            text = without_language(text).lstrip()
            break
    text = text.removeprefix("[").lstrip()
    if not "{".startswith(text[:1]):
        return False
    text = text.removeprefix("{").removeprefix("{").lstrip()
    return not text or (text.startswith('"') and _may_be_first_member(text[1:], tools))


def _may_be_first_member(text: str, tools: Tools) -> bool:
    """``text``: behind the first quote."""
    key, ended, rest = text.partition('"')
    if not ended:
        return any(known.startswith(key) for known in KEYS)
    if key != "name":
        return key in KEYS
    value = rest.lstrip().removeprefix(":").lstrip()
    name, ended, _ = value.removeprefix('"').partition('"')
    return name in tools if ended else any(known.startswith(name) for known in tools)


def without_language(text: str) -> str:
    for name in LANGUAGES:
        text = text.removeprefix(name)
    return text


def read_calls(text: str, tools: Tools) -> list[Call]:
    """The calls that a text is; none if it is, or has, anything else."""
    text = text.strip()
    for opening, end in WRAPPINGS:
        if text.startswith(opening):
            text = without_language(text.removeprefix(opening)).strip().removesuffix(end).strip()
            break
    try:
        return [call(value, tools) for value in _values(text)]
    except (ValueError, RecursionError):
        return []


def _values(text: str) -> Iterator[Any]:
    """Objects one after the other, or those of one list."""
    decoder, at = json.JSONDecoder(parse_constant=_no_json), 0
    while at < len(text):
        is_doubled = text.startswith("{{", at)
        value, at = decoder.raw_decode(text, at + is_doubled)
        at += is_doubled and text.startswith("}", at)
        yield from value if isinstance(value, list) and at == len(text) else [value]
        while at < len(text) and text[at] in " \r\n\t,":
            at += 1


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def call(value: Any, tools: Tools) -> Call:
    """ValueError for what is no call of a tool on offer, with arguments that fit."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not value.keys() <= set(KEYS):
        raise ValueError("no call")
    names = [value[key] for key in NAMES if key in value]
    given = [value[key] for key in ARGUMENTS if key in value]
    if len(names) != 1 or len(given) != 1 or not isinstance(names[0], str):
        raise ValueError("not one name and arguments")
    arguments = json.loads(given[0]) if isinstance(given[0], str) else given[0]
    schema = tools.get(names[0])
    if schema is None or not isinstance(arguments, dict) or not fits(arguments, schema):
        raise ValueError("no such tool, or other arguments than it has")
    return names[0], arguments
