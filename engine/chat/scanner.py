"""Reading a text that is still being written.

Parsers are generators over a Scanner: they ``yield`` where they need more text and go on with
it, so that each reads like a parser of a whole text, and no text is looked at twice. What they
understand goes out at once through the Scanner's sinks; the beginning of a marker is held back.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from gguf_serve.engine.chat.delta import NOTHING, ChatDelta, ToolCallDelta

T = TypeVar("T")
Parse = Generator[None, None, T]
Sink = Callable[[str], None]

MAX_NAME = 256  # characters of a name, a key or an id
_SPACE = re.compile(r"\s*")


class MalformedError(Exception):
    """The text is not what the syntax asks for; never leaves the chat package."""


class Scanner:
    """The unread text, and what has been understood since the last ``take``."""

    __slots__ = ("_calls", "_content", "_reasoning", "ended", "kept", "n_calls", "pos", "text")

    def __init__(self) -> None:
        self.text = ""
        self.pos = 0
        self.ended = False
        self.kept = -1  # text from here on stays, to go back to; negative: from pos on
        self.n_calls = 0
        self._content = ""
        self._reasoning = ""
        self._calls: list[ToolCallDelta] = []

    def feed(self, text: str) -> None:
        cut = self.pos if self.kept < 0 else self.kept
        self.text = self.text[cut:] + text
        self.pos -= cut
        self.kept = min(self.kept, 0)

    def content(self, text: str) -> None:
        self._content += text

    def reasoning(self, text: str) -> None:
        self._reasoning += text

    def begin_call(self, name: str, id: str = "") -> None:
        """Open the next call; from here on the text cannot become content again."""
        self._calls.append(ToolCallDelta(self.n_calls, id, name))
        self.n_calls += 1
        self.kept = -1

    def arguments(self, text: str) -> None:
        """More of the last call's arguments."""
        if not text:
            return
        index = self.n_calls - 1
        if self._calls and self._calls[-1].index == index:
            last = self._calls.pop()
            self._calls.append(ToolCallDelta(index, last.id, last.name, last.arguments + text))
        else:
            self._calls.append(ToolCallDelta(index, arguments=text))

    def take(self) -> ChatDelta:
        if not (self._content or self._reasoning or self._calls):
            return NOTHING
        delta = ChatDelta(self._content, self._reasoning, tuple(self._calls))
        self._content = self._reasoning = ""
        self._calls.clear()
        return delta


class Marks:
    """Literal texts to look for, also while only their beginning is there."""

    __slots__ = ("_beginnings", "_first", "_longest", "_pattern")

    def __init__(self, literals: Iterable[str]) -> None:
        known = sorted(filter(None, set(literals)), key=len, reverse=True)
        # Without literals: patterns that match nowhere.
        self._pattern = re.compile("|".join(map(re.escape, known)) or r"(?!)")
        firsts = {literal[0] for literal in known}
        self._first = re.compile(f"[{re.escape(''.join(firsts))}]" if firsts else r"(?!)")
        self._beginnings = {lit[:n] for lit in known for n in range(1, len(lit))}
        self._longest = len(known[0]) if known else 0

    def search(self, text: str, pos: int, is_all: bool) -> re.Match[str] | None:
        """The first mark; not one that may be a part of another, if more text may come."""
        found = self._pattern.search(text, pos)
        if found and not is_all and self.unfinished(text, pos) <= found.start():
            return None
        return found

    def match(self, text: str, pos: int, is_all: bool) -> re.Match[str] | None:
        """The mark that the text goes on with."""
        found = self._pattern.match(text, pos)
        return None if found and not is_all and self.unfinished(text, pos) == pos else found

    def unfinished(self, text: str, pos: int) -> int:
        """Where the beginning of a mark begins at the end of the text; len(text) if nowhere."""
        pos = max(pos, len(text) - self._longest + 1)
        while found := self._first.search(text, pos):
            if text[found.start() :] in self._beginnings:
                return found.start()
            pos = found.end()
        return len(text)


@functools.lru_cache(maxsize=1024)
def marks(*literals: str) -> Marks:
    return Marks(literals)


def until(scanner: Scanner, stops: Marks, sink: Sink) -> Parse[str | None]:
    """Send the text up to the first stop and skip that; which it was, None at the end."""
    while True:
        found = stops.search(scanner.text, scanner.pos, scanner.ended)
        end = found.start() if found else len(scanner.text)
        if not found and not scanner.ended:
            end = stops.unfinished(scanner.text, scanner.pos)
        if end > scanner.pos:
            sink(scanner.text[scanner.pos : end])
        scanner.pos = found.end() if found else end
        if found or scanner.ended:
            return found.group() if found else None
        yield


def accept(scanner: Scanner, choices: Marks) -> Parse[str | None]:
    """Skip one of the choices if the text goes on with it."""
    while True:
        found = choices.match(scanner.text, scanner.pos, scanner.ended)
        if found:
            scanner.pos = found.end()
            return found.group()
        undecided = choices.unfinished(scanner.text, scanner.pos) == scanner.pos
        if scanner.ended or (not undecided and scanner.pos < len(scanner.text)):
            return None
        yield


def expect(scanner: Scanner, choices: Marks) -> Parse[str]:
    """Skip one of the choices; MalformedError if the text goes on with something else."""
    found = yield from accept(scanner, choices)
    if found is None:
        raise MalformedError
    return found


def skip_space(scanner: Scanner) -> Parse[str]:
    """The white space that comes next, once something else, or the end, follows it."""
    space = ""
    while True:
        found = _SPACE.match(scanner.text, scanner.pos)
        assert found is not None  # the pattern matches the empty text
        space += found.group()
        scanner.pos = found.end()
        if scanner.pos < len(scanner.text) or scanner.ended:
            return space
        yield


def enclosed(scanner: Scanner, end: Marks) -> Parse[str]:
    """The short text up to ``end``, which is skipped; MalformedError if that does not come."""
    text = ""

    def collect(more: str) -> None:
        nonlocal text
        text += more
        if len(text) > MAX_NAME:
            raise MalformedError

    if (yield from until(scanner, end, collect)) is None:
        raise MalformedError
    return text
