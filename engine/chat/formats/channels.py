"""Turns in parts, each with a header that says what it is: Harmony and its relatives."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from gguf_serve.engine.chat.formats.param_calls import ParamCalls
from gguf_serve.engine.chat.json_text import json_value
from gguf_serve.engine.chat.lark import Lark, maybe, one_of, quoted, sequence, several
from gguf_serve.engine.chat.layout import Syntax, Tools, Turn
from gguf_serve.engine.chat.scanner import (
    MalformedError,
    Parse,
    Scanner,
    accept,
    enclosed,
    marks,
    skip_space,
    until,
)
from gguf_serve.engine.grammar.constraint import Trigger

# What a part of a turn is: text, thinking, what nobody wants, or a call of the function named.
PartKind = Literal["content", "reasoning", "nothing"] | tuple[Literal["call"], str]


class Channels(Struct, frozen=True):
    """``(begin HEADER header_end BODY end)*``; the first ``begin`` is in the prompt.

    ``headers`` are the texts that a header begins with: without one of them, the text is
    content. ``tag`` is the header of reasoning, as it is shown where that stays in the content.
    """

    headers: tuple[str, ...]
    header_end: str
    ends: tuple[str, ...]
    begin: str
    part: Callable[[str, Turn], PartKind]
    tag: str = ""
    calls: Syntax | None = None  # how the body of a call is written, if it is not only arguments

    def __call__(self, scanner: Scanner, turn: Turn) -> Parse[None]:
        while True:
            scanner.kept = scanner.pos
            header = yield from self._header(scanner)
            part: PartKind = "content" if header is None else self.part(header, turn)
            if header is not None:
                scanner.kept = -1
            end = yield from self._body(scanner, turn, part)
            if end is None:
                return
            if end != self.begin:
                yield from skip_space(scanner)
                yield from accept(scanner, marks(self.begin))

    def _header(self, scanner: Scanner) -> Parse[str | None]:
        start = yield from accept(scanner, marks(*self.headers))
        if start is None:
            return None
        try:
            return start + (yield from enclosed(scanner, marks(self.header_end)))
        except MalformedError:
            scanner.pos = scanner.kept
            return None

    def _body(self, scanner: Scanner, turn: Turn, part: PartKind) -> Parse[str | None]:
        if isinstance(part, tuple) and self.calls:
            return (yield from self._calls(scanner, turn, self.calls))
        if isinstance(part, tuple):
            scanner.begin_call(part[1])
            yield from skip_space(scanner)
            yield from json_value(scanner, scanner.arguments)
            return (yield from until(scanner, marks(*self.ends, self.begin), _ignore))
        markup = self.tag

        def reason(text: str) -> None:
            nonlocal markup
            turn.reasoned(scanner, text, markup)
            markup = ""

        sink = {"content": scanner.content, "reasoning": reason, "nothing": _ignore}[part]
        end = yield from until(scanner, marks(*self.ends, self.begin), sink)
        if part == "reasoning" and not markup and end in self.ends:
            turn.reasoned(scanner, "", end)
        return end

    def _calls(self, scanner: Scanner, turn: Turn, calls: Syntax) -> Parse[str | None]:
        starts = calls.starts(turn.tools)
        stops = marks(*starts, *calls.dropped, *self.ends, self.begin)
        while (mark := (yield from until(scanner, stops, scanner.content))) is not None:
            if mark in starts:
                yield from calls.read(scanner, mark, turn.tools)
            elif mark not in calls.dropped:
                break
            yield from skip_space(scanner)
        return mark


def _ignore(text: str) -> None:
    pass


_RECIPIENT = re.compile(r"\bto=(\S+?)(?=<|\s|$)")
_CHANNEL = re.compile(r"<\|channel\|>(\w+)")


def _harmony_part(header: str, turn: Turn) -> PartKind:
    recipient = _RECIPIENT.search(header)
    channels = _CHANNEL.findall(header)
    if recipient and recipient[1].startswith("functions."):
        name = recipient[1].removeprefix("functions.")
        return ("call", name) if turn.tools else "content"
    if recipient and recipient[1] not in ("assistant", "user", "all"):
        return "nothing"  # a tool of the model's own, such as python
    return "reasoning" if channels and channels[-1] == "analysis" else "content"


class HarmonyCalls:
    """`` to=functions.NAME`` before or after the channel, then arguments."""

    def triggers(self, tools: Tools) -> tuple[Trigger, ...]:
        name = rf"to=functions\.(?:{'|'.join(map(re.escape, tools))})"
        begin = re.escape(HARMONY.begin)
        in_channel = rf"<\|channel\|>(?:commentary|analysis) {name}"
        return tuple(Trigger(f"{begin}({head})", True) for head in (f" {name}", in_channel))

    def grammar(self, lark: Lark, tools: Tools, is_parallel: bool) -> str:
        channel = '"<|channel|>" ("commentary" | "analysis")'
        kind = r'(" "? "<|constrain|>"? "json")?'
        calls = []
        for name, schema in tools.items():
            to = quoted(f" to=functions.{name}")
            head = one_of([sequence(to, maybe(channel)), sequence(channel, to)])
            arguments = lark.arguments(name, schema)
            calls.append(sequence(head, kind, quoted(HARMONY.header_end), arguments))
        return one_of(calls)


HARMONY = Channels(
    headers=("<|channel|>", " to="),
    header_end="<|message|>",
    ends=("<|end|>", "<|call|>", "<|return|>"),
    begin="<|start|>assistant",
    part=_harmony_part,
    tag="<|channel|>analysis<|message|>",
)


class MuseCalls:
    """`` to=NAME`` as the header of a part that holds calls."""

    def triggers(self, tools: Tools) -> tuple[Trigger, ...]:
        names = "|".join(map(re.escape, tools))
        header = rf" to=(?:{names}){re.escape(MUSE.header_end)}"
        return (Trigger(f"{re.escape(MUSE.begin)}({header})", True),)

    def grammar(self, lark: Lark, tools: Tools, is_parallel: bool) -> str:
        assert MUSE.calls is not None
        call = one_of(
            sequence(
                quoted(f" to={name}{MUSE.header_end}"),
                lark.space,
                MUSE.calls.grammar(lark, {name: schema}, is_parallel),
            )
            for name, schema in tools.items()
        )
        return several(call, sequence(quoted(MUSE.ends[0] + MUSE.begin)), is_parallel)


def _muse_part(header: str, turn: Turn) -> PartKind:
    recipient = _RECIPIENT.search(header)
    if recipient is None or recipient[1] == "user":
        return "content"
    return "reasoning" if recipient[1] == "self" else ("call", recipient[1])


MUSE = Channels(
    headers=(" to=", "<|message|>"),
    header_end="<|message|>",
    ends=("<|eom|>", "<|eot|>"),
    begin="<|start|>assistant",
    part=_muse_part,
    tag=" to=self<|message|>",
    calls=ParamCalls(
        start='<atem:invoke name="',
        name_end='"',
        parameter='<atem:parameter name="',
        key_end='"',
        tag_end=">",
        value_end="</atem:parameter>",
        end="</atem:invoke>",
        section=("<atem:function_calls>", "</atem:function_calls>"),
    ),
)
