"""JSON that is still being written: checked and passed on character by character."""

from __future__ import annotations

import json
import re

from gguf_serve.engine.chat.scanner import (
    MalformedError,
    Parse,
    Scanner,
    Sink,
    accept,
    expect,
    marks,
    skip_space,
)

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_UNFINISHED_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_NUMBER_CHARACTERS = re.compile(r"[-+.eE\d]*", re.ASCII)
_QUOTE = marks('"')
_COLON = marks(":")
MAX_DEPTH = 100  # of nested values
_WORDS = marks("true", "false", "null")


def json_value(scanner: Scanner, sink: Sink, depth: int = 0) -> Parse[None]:
    """Send one value as it is written, without white space around it.

    MalformedError where it stops being JSON; what was sent until then is a beginning of JSON.
    """
    yield from more(scanner)
    first = scanner.text[scanner.pos]
    if depth > MAX_DEPTH:
        raise MalformedError
    if first == "{":
        yield from _items(scanner, sink, depth, "}")
    elif first == "[":
        yield from _items(scanner, sink, depth, "]")
    elif first == '"':
        yield from json_string(scanner, sink)
    elif first == "-" or first in "0123456789":
        yield from _number(scanner, sink)
    else:
        sink((yield from expect(scanner, _WORDS)))


def _items(scanner: Scanner, sink: Sink, depth: int, closer: str) -> Parse[None]:
    """An object or an array, whose opening character comes next."""
    sink(scanner.text[scanner.pos])
    scanner.pos += 1
    sink((yield from more(scanner)))
    separator = yield from accept(scanner, marks(closer))
    while separator is None or separator == ",":
        if closer == "}":
            yield from json_string(scanner, sink)
            sink((yield from more(scanner)) + (yield from expect(scanner, _COLON)))
            sink((yield from more(scanner)))
        yield from json_value(scanner, sink, depth + 1)
        space = yield from more(scanner)
        separator = yield from expect(scanner, marks(",", closer))
        if separator == ",":
            sink(space + separator + (yield from more(scanner)))
        else:
            sink(space)
    sink(separator)


def more(scanner: Scanner) -> Parse[str]:
    """White space that something follows; MalformedError at the end of the text."""
    space = yield from skip_space(scanner)
    if scanner.pos == len(scanner.text):
        raise MalformedError
    return space


def _number(scanner: Scanner, sink: Sink) -> Parse[None]:
    while True:
        found = _NUMBER_CHARACTERS.match(scanner.text, scanner.pos)
        assert found is not None  # the pattern matches the empty text
        if found.end() < len(scanner.text) or scanner.ended:
            break
        yield
    if not NUMBER.fullmatch(found.group()):
        raise MalformedError
    scanner.pos = found.end()
    sink(found.group())


def json_string(scanner: Scanner, sink: Sink) -> Parse[None]:
    """Send a string with its quotes.

    Control characters and unknown escapes, which models write and JSON forbids, are mended.
    """
    sink((yield from expect(scanner, _QUOTE)))
    while True:
        text, pos = scanner.text, scanner.pos
        if found := _PLAIN.match(text, pos) or _ESCAPE.match(text, pos):
            scanner.pos = found.end()
            sink(found.group())
        elif pos == len(text) or _UNFINISHED_ESCAPE.match(text, pos):
            if scanner.ended:
                raise MalformedError
            yield
        elif text[pos] == '"':
            scanner.pos += 1
            return sink('"')
        else:
            scanner.pos += 1
            sink(escaped(text[pos]))


def string_value(scanner: Scanner) -> Parse[str]:
    """What a string says."""
    parts: list[str] = []
    yield from json_string(scanner, parts.append)
    value: str = json.loads("".join(parts))
    return value


def json_fragment(scanner: Scanner) -> Parse[str]:
    """The text of one value."""
    parts: list[str] = []
    yield from json_value(scanner, parts.append)
    return "".join(parts)


def members(scanner: Scanner) -> Parse[str | None]:
    """The next key of an object, or None at its end.

    To be called with the scanner before the opening brace, and then after each value.
    """
    yield from more(scanner)
    mark = yield from expect(scanner, marks("{", ",", "}"))
    yield from more(scanner)
    if mark == "}" or (mark == "{" and (yield from accept(scanner, marks("}")))):
        return None
    key = yield from string_value(scanner)
    yield from more(scanner)
    yield from expect(scanner, _COLON)
    yield from more(scanner)
    return key


def escaped(text: str) -> str:
    """The text as it stands in a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
