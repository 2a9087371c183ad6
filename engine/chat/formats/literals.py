"""Values in other notations than JSON, which become JSON as they come: Python's and Gemma's."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from engine.chat.json_text import MAX_DEPTH, more
from engine.chat.scanner import (
    MalformedError,
    Marks,
    Parse,
    Scanner,
    Sink,
    accept,
    expect,
    marks,
    until,
)
from engine.chat.values import as_json, escaped

_CLOSERS = {"{": "}", "[": "]", "(": ")"}
_BARE = re.compile(r"[^\s,:{}\[\]()<>\"'=]*")
_ESCAPED = re.compile(r"[^xuU0-7]|x..|u.{4}|U.{8}|[0-7]{1,3}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Notation:
    quotes: tuple[str, ...]
    has_escapes: bool
    words: Mapping[str, str]


PYTHON = Notation(('"', "'"), True, {"True": "true", "False": "false", "None": "null"})
GEMMA = Notation(('<|"|>',), False, {})


def literal(scanner: Scanner, sink: Sink, notation: Notation, depth: int = 0) -> Parse[None]:
    """Send one value as JSON; MalformedError where it is none."""
    yield from more(scanner)
    opening = yield from accept(scanner, marks(*notation.quotes, *_CLOSERS))
    if opening is None:
        word = yield from bare_word(scanner)
        sink(notation.words.get(word) or as_json(word, frozenset()))
    elif opening in notation.quotes:
        yield from _text(scanner, sink, notation, opening)
    elif depth > MAX_DEPTH:
        raise MalformedError
    elif opening == "{":
        yield from mapping(scanner, sink, notation, marks(":"), "}", depth)
    else:
        yield from _sequence(scanner, sink, notation, _CLOSERS[opening], depth)


def mapping(
    scanner: Scanner, sink: Sink, notation: Notation, colon: Marks, closer: str, depth: int = 0
) -> Parse[None]:
    """``key: value, ... }`` after its opening, as a JSON object; keys with quotes or without."""
    sink("{")
    yield from more(scanner)
    mark = yield from accept(scanner, marks(closer))
    while mark is None or mark == ",":
        separator = "" if mark is None else ","
        yield from more(scanner)
        if mark == "," and (yield from accept(scanner, marks(closer))):
            break  # a comma after the last one
        quote = yield from accept(scanner, marks(*notation.quotes))
        sink(separator)
        if quote:
            yield from _text(scanner, sink, notation, quote)
        else:
            sink(json.dumps((yield from bare_word(scanner)), ensure_ascii=False))
        yield from more(scanner)
        yield from expect(scanner, colon)
        sink(":")
        yield from literal(scanner, sink, notation, depth + 1)
        yield from more(scanner)
        mark = yield from expect(scanner, marks(",", closer))
    sink("}")


def _sequence(
    scanner: Scanner, sink: Sink, notation: Notation, closer: str, depth: int
) -> Parse[None]:
    sink("[")
    yield from more(scanner)
    mark = yield from accept(scanner, marks(closer))
    while mark is None or mark == ",":
        yield from more(scanner)
        if mark == "," and (yield from accept(scanner, marks(closer))):
            break
        sink("" if mark is None else ",")
        yield from literal(scanner, sink, notation, depth + 1)
        yield from more(scanner)
        mark = yield from expect(scanner, marks(",", closer))
    sink("]")


def bare_word(scanner: Scanner) -> Parse[str]:
    """A word without quotes, up to white space or punctuation; MalformedError if none."""
    while True:
        found = _BARE.match(scanner.text, scanner.pos)
        assert found is not None  # the pattern matches the empty text
        if found.end() < len(scanner.text):
            break
        if scanner.ended:
            raise MalformedError
        yield
    if not found.group():
        raise MalformedError
    scanner.pos = found.end()
    return found.group()


def _text(scanner: Scanner, sink: Sink, notation: Notation, quote: str) -> Parse[None]:
    """A string after its opening quote."""
    sink('"')
    stops = marks(quote, "\\") if notation.has_escapes else marks(quote)
    while (stop := (yield from until(scanner, stops, lambda text: sink(escaped(text))))) != quote:
        if stop is None:
            raise MalformedError
        sink(escaped((yield from _escape(scanner))))
    sink('"')


def _escape(scanner: Scanner) -> Parse[str]:
    """The character that a Python escape, whose backslash has been read, stands for."""
    while True:
        found = _ESCAPED.match(scanner.text, scanner.pos)
        # An octal escape may go on with the next character.
        if found and (found.end() < len(scanner.text) or not found.group()[0].isdigit()):
            break
        if scanner.ended or len(scanner.text) - scanner.pos > 8:
            return "\\"
        yield
    scanner.pos = found.end()
    try:
        character = ast.literal_eval(f'"\\{found.group()}"')
    except (ValueError, SyntaxError):
        return "\\" + found.group()
    return str(character)
