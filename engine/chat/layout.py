"""How a family of models writes its turn: thinking, text, calls, and the marks around them.

A Layout is data and one reader; ``formats/table.py`` has the rows. A Turn is what one request
makes of it. ``read_message`` reads the usual turn: thinking first, then text and calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from msgspec import Struct

from gguf_serve.engine.chat.lark import Lark
from gguf_serve.engine.chat.scanner import (
    MalformedError,
    Parse,
    Scanner,
    Sink,
    accept,
    marks,
    skip_space,
    until,
)
from gguf_serve.engine.grammar.constraint import Trigger

ReasoningFormat = Literal["none", "auto", "deepseek", "deepseek-legacy"]
Tools = Mapping[str, Mapping[str, Any]]  # name -> JSON schema of the arguments


class Thinking(Struct, frozen=True):
    """The tags around reasoning; the first end is the usual one, to force an end with."""

    start: str
    ends: tuple[str, ...]


class CallGrammar(Protocol):
    """What calls must look like, for constrained generation."""

    def triggers(self, tools: Tools) -> tuple[Trigger, ...]:
        """What in free text begins what ``grammar`` describes; none: only all of it can be."""

    def grammar(self, lark: Lark, tools: Tools, is_parallel: bool) -> str:
        """An expression for calls, from their start on."""


class Syntax(CallGrammar, Protocol):
    """How calls are written; what begins them tells them from text."""

    def starts(self, tools: Tools) -> tuple[str, ...]: ...

    @property
    def dropped(self) -> tuple[str, ...]:
        """Marks around calls, which say nothing."""

    def read(self, scanner: Scanner, start: str, tools: Tools) -> Parse[None]:
        """Read calls, of which ``start`` has been read.

        MalformedError where they are no calls; ``scanner.kept`` says what may become text.
        """


class Turn(Struct, frozen=True):
    """One request's turn: the layout with what the request wants of it."""

    layout: Layout
    tools: Tools  # none: calls are text
    reasoning: ReasoningFormat = "auto"
    is_json: bool = False  # the content follows a schema, and may stand in a code fence

    def reasoned(self, scanner: Scanner, text: str, markup: str = "") -> None:
        """Send reasoning, after tags that only those see who get it within the content."""
        if self.reasoning in ("none", "deepseek-legacy"):
            scanner.content(markup + text)
        if self.reasoning != "none":
            scanner.reasoning(text)

    def call_marks(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What begins calls, and what stands around them; nothing without tools."""
        syntax = self.layout.syntax
        return (syntax.starts(self.tools), syntax.dropped) if syntax and self.tools else ((), ())

    def thinking_ends(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What closes the thinking, and what ends it too but belongs to the text after it."""
        if self.layout.thinking is None:
            return (), ()
        starts, dropped = self.call_marks()
        after = {*starts, *dropped, *self.layout.ends_thinking}
        ends = (*self.layout.thinking.ends, *self.layout.ends_thinking)
        syntax = self.layout.syntax
        not_ours = {*syntax.starts(self.tools), *syntax.dropped} if syntax else set()
        closing = tuple(end for end in ends if end not in after | not_ours)
        return closing, tuple(end for end in ends if end in after)


def read_message(scanner: Scanner, turn: Turn) -> Parse[None]:
    yield from _read_opening(scanner, turn)
    if turn.is_json and (yield from read_fenced(scanner)):
        return
    starts, dropped = turn.call_marks()
    thinking = turn.layout.thinking
    thoughts = (thinking.start,) if thinking and turn.layout.thinks_anywhere else ()
    stops = marks(*starts, *dropped, *turn.layout.dropped, *thoughts)
    while (mark := (yield from until(scanner, stops, scanner.content))) is not None:
        if mark in starts:
            yield from _read_calls(scanner, turn, mark)
        elif mark in thoughts:
            yield from _read_thinking(scanner, turn, mark)
        elif mark in dropped:
            yield from skip_space(scanner)


def _read_opening(scanner: Scanner, turn: Turn) -> Parse[None]:
    """Thinking at the beginning, if there is any; an end without a beginning says nothing."""
    thinking = turn.layout.thinking
    if thinking is None:
        return
    space = yield from skip_space(scanner)
    tag = yield from accept(scanner, marks(thinking.start, *turn.thinking_ends()[0]))
    if tag == thinking.start:
        yield from _read_thinking(scanner, turn, tag)
    elif tag is None:
        scanner.content(space)


def _read_thinking(scanner: Scanner, turn: Turn, start: str) -> Parse[None]:
    """Reasoning after its start tag; white space around it is the template's. Tags that the model
    repeats say nothing, and calls in what is never closed are calls."""
    markup = start + (yield from skip_space(scanner))
    while (again := (yield from accept(scanner, marks(start)))) is not None:
        markup += again + (yield from skip_space(scanner))
    closing, after = turn.thinking_ends()
    calls = tuple(mark for mark in turn.call_marks()[0] if mark not in after)

    def send(text: str) -> None:
        nonlocal markup
        turn.reasoned(scanner, text, markup)
        markup = ""

    end = yield from until(scanner, marks(*closing, *after, *calls), send)
    if end in calls:
        scanner.kept = scanner.pos - len(end or "")
        mark, end = end or "", (yield from until(scanner, marks(*closing, *after), _nowhere))
        if end is None:
            yield from _read_unclosed_calls(scanner, turn, mark, send)
            return
        send(scanner.text[scanner.kept : scanner.pos - len(end)])
        scanner.kept = -1
    if end in after:
        scanner.pos -= len(end or "")
        return
    space = yield from skip_space(scanner)
    while (yield from accept(scanner, marks(*closing))):
        space = yield from skip_space(scanner)
    if end is not None and not markup:
        turn.reasoned(scanner, "", end + space)


def _nowhere(text: str) -> None:
    """For text that ``kept`` has."""


def _read_unclosed_calls(scanner: Scanner, turn: Turn, start: str, send: Sink) -> Parse[None]:
    """Calls at ``kept`` in thinking that has ended without its tag; what is none is thought."""
    assert turn.layout.syntax is not None
    scanner.pos = scanner.kept + len(start)
    try:
        yield from turn.layout.syntax.read(scanner, start, turn.tools)
    except MalformedError:
        if scanner.kept >= 0:
            send(scanner.text[scanner.kept :])
            scanner.pos = len(scanner.text)
    scanner.kept = -1
    yield from skip_space(scanner)


def read_fenced(scanner: Scanner) -> Parse[bool]:
    """JSON in a code fence, without it; False if there is no fence."""
    yield from skip_space(scanner)
    if not (yield from accept(scanner, marks("```json"))):
        return False
    yield from skip_space(scanner)
    yield from until(scanner, marks("\n```", "```"), scanner.content)
    yield from skip_space(scanner)
    return True


def _read_calls(scanner: Scanner, turn: Turn, start: str) -> Parse[None]:
    """Calls after their start; what does not parse is content, from the start of it on."""
    assert turn.layout.syntax is not None
    scanner.kept = scanner.pos - len(start)
    while (yield from accept(scanner, marks(start, "\n" + start))):
        pass  # the model has written the mark twice
    try:
        yield from turn.layout.syntax.read(scanner, start, turn.tools)
    except MalformedError:
        if scanner.kept >= 0:
            scanner.pos = scanner.kept + len(start)
            scanner.content(scanner.text[scanner.kept : scanner.pos])
            scanner.kept = -1
            return
    scanner.kept = -1
    yield from skip_space(scanner)


class Layout(Struct, frozen=True):
    """A family's turn: how thinking and calls are written, and what its reader needs to know."""

    name: str
    syntax: Syntax | None = None
    thinking: Thinking | None = None
    opening: str = ""  # what the generation prompt holds before the text that is read
    dropped: tuple[str, ...] = ()  # marks around the content
    ends_thinking: tuple[str, ...] = ()  # marks that end it too, and are read after it
    thinks_anywhere: bool = False  # not only at the beginning
    stops: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()  # special tokens that the reader needs as text
    read: Callable[[Scanner, Turn], Parse[None]] = read_message
    calls: CallGrammar | None = None  # where it is not the syntax that says so
    # In Lark: what stands around an answer in JSON, before calls that must come, and after.
    answer: tuple[str, str] = ("", "")
    before_calls: str = ""
    after_calls: str = ""
