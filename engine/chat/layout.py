"""How a family of models writes its turn: thinking, text, calls, and the marks around them.

A Layout is data and one reader; ``formats/table.py`` has the rows. A Turn is what one request
makes of it. ``read_message`` reads the usual turn: thinking first, then text and calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from engine.chat.scanner import MalformedError, Parse, Scanner, accept, marks, skip_space, until

ReasoningFormat = Literal["none", "auto", "deepseek", "deepseek-legacy"]
Tools = Mapping[str, Mapping[str, Any]]  # name -> JSON schema of the arguments


@dataclass(frozen=True, slots=True)
class Thinking:
    """The tags around reasoning; the first end is the usual one, to force an end with."""

    start: str
    ends: tuple[str, ...]


class Syntax(Protocol):
    """How calls are written; what begins them tells them from text."""

    def starts(self, tools: Tools) -> tuple[str, ...]: ...

    def read(self, scanner: Scanner, start: str, tools: Tools) -> Parse[None]:
        """Read calls, of which ``start`` has been read.

        MalformedError where they are no calls; ``scanner.kept`` says what may become text.
        """


@dataclass(frozen=True, slots=True)
class Turn:
    """One request's turn: the layout with what the request wants of it."""

    layout: Layout
    thinking: Thinking | None
    tools: Tools  # none: calls are text
    reasoning: ReasoningFormat = "auto"

    def reasoned(self, scanner: Scanner, text: str, markup: str = "") -> None:
        """Send reasoning, after tags that only those see who get it within the content."""
        if self.reasoning in ("none", "deepseek-legacy"):
            scanner.content(markup + text)
        if self.reasoning != "none":
            scanner.reasoning(text)


@dataclass(frozen=True, slots=True)
class Layout:
    name: str
    syntax: Syntax | None = None
    thinking: Thinking | None = None
    opening: str = ""  # what the generation prompt holds before the text that is read
    dropped: tuple[str, ...] = ()  # marks around the content
    stops: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()  # special tokens that the reader needs as text
    read: Callable[[Scanner, Turn], Parse[None]] = lambda scanner, turn: read_message(scanner, turn)


def read_message(scanner: Scanner, turn: Turn) -> Parse[None]:
    thinking, layout = turn.thinking, turn.layout
    if thinking:
        space = yield from skip_space(scanner)
        start = yield from accept(scanner, marks(thinking.start, *thinking.ends))
        if start == thinking.start:
            yield from read_thinking(scanner, turn, start)
        elif start is None:
            scanner.content(space)
        elif start in calls_of(turn):
            scanner.pos -= len(start)
    starts = calls_of(turn)
    stops = marks(*starts, *layout.dropped)
    while (mark := (yield from until(scanner, stops, scanner.content))) is not None:
        if mark in starts:
            yield from read_calls(scanner, turn, mark)


def calls_of(turn: Turn) -> tuple[str, ...]:
    return turn.layout.syntax.starts(turn.tools) if turn.layout.syntax and turn.tools else ()


def read_thinking(scanner: Scanner, turn: Turn, start: str) -> Parse[None]:
    """Reasoning after its start tag; white space around it is the template's."""
    assert turn.thinking is not None
    markup = start + (yield from skip_space(scanner))

    def send(text: str) -> None:
        nonlocal markup
        turn.reasoned(scanner, text, markup)
        markup = ""

    end = yield from until(scanner, marks(*turn.thinking.ends), send)
    if end is not None and end in calls_of(turn):
        scanner.pos -= len(end)
        return
    space = yield from skip_space(scanner)
    if end is not None and not markup and turn.reasoning != "auto":
        turn.reasoned(scanner, "", end + space)


def read_calls(scanner: Scanner, turn: Turn, start: str) -> Parse[None]:
    """Calls after their start; what does not parse is content, from the start of it on."""
    assert turn.layout.syntax is not None
    scanner.kept = scanner.pos - len(start)
    try:
        yield from turn.layout.syntax.read(scanner, start, turn.tools)
    except MalformedError:
        if scanner.kept >= 0:
            end = max(scanner.kept + len(start), scanner.pos if scanner.ended else 0)
            scanner.content(scanner.text[scanner.kept : end])
            scanner.pos = end
    scanner.kept = -1
    yield from skip_space(scanner)
