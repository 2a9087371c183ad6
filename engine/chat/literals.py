"""Values in other notations than JSON, which become JSON as they come: Python's and Gemma's."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping

from msgspec import Struct

from gguf_serve.engine.chat.json_text import MAX_DEPTH, NUMBER, escaped, more
from gguf_serve.engine.chat.scanner import (
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

_CLOSERS = {"{": "}", "[": "]", "(": ")"}
_BARE = re.compile(r"[^\s,:{}\[\]()<>\"'=]*")
_ESCAPED = re.compile(r"[^xuU]|x[\da-fA-F]{2}|u[\da-fA-F]{4}|U[\da-fA-F]{8}", re.DOTALL | re.ASCII)
_LONGEST_ESCAPE = 9
_ESCAPES = {character: "\\" + character for character in '"\\/bfnrt'} | {
    "'": "'",
    "\n": "",  # a line that goes on
    "0": "\\u0000",
    "a": "\\u0007",
    "v": "\\u000b",
}


class Notation(Struct, frozen=True):
    quotes: tuple[str, ...]
    has_escapes: bool
    words: Mapping[str, str]
    has_bare_texts: bool = False  # keys and values may stand without quotes


_WORDS = {word: word for word in ("true", "false", "null")}
_WORDS |= {"True": "true", "False": "false", "None": "null"}
PYTHON = Notation(('"', "'"), True, _WORDS)  # reads JSON as well
GEMMA = Notation(('<|"|>',), False, _WORDS, has_bare_texts=True)


def literal(scanner: Scanner, sink: Sink, notation: Notation, depth: int = 0) -> Parse[None]:
    """Send one value as JSON; MalformedError where it is none."""
    yield from more(scanner)
    opening = yield from accept(scanner, marks(*notation.quotes, *_CLOSERS))
    if opening is None:
        word = yield from bare_word(scanner)
        sink(_bare_value(word, notation))
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
        elif notation.has_bare_texts or closer == ")":  # keywords of a call
            sink(json.dumps((yield from bare_word(scanner)), ensure_ascii=False))
        else:
            raise MalformedError
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


def _bare_value(word: str, notation: Notation) -> str:
    if word in notation.words:
        return notation.words[word]
    if NUMBER.fullmatch(word):
        return word
    if not notation.has_bare_texts:
        raise MalformedError
    return json.dumps(word, ensure_ascii=False)


def bare_word(scanner: Scanner) -> Parse[str]:
    """A word without quotes, up to white space or punctuation; MalformedError if none."""
    while True:
        found = _BARE.match(scanner.text, scanner.pos)
        assert found is not None  # the pattern matches the empty text
        if found.end() < len(scanner.text) or scanner.ended:
            break
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
        sink((yield from _escape(scanner)))
    sink('"')


def _escape(scanner: Scanner) -> Parse[str]:
    """The JSON of an escape whose backslash has been read; of none, the backslash itself."""
    while True:
        found = _ESCAPED.match(scanner.text, scanner.pos)
        if found or scanner.ended or len(scanner.text) - scanner.pos >= _LONGEST_ESCAPE:
            break
        yield
    if found is None:
        return "\\\\"
    scanner.pos = found.end()
    kind, digits = found.group()[0], found.group()[1:]
    if digits:
        code = int(digits, 16)
        return f"\\u{code:04x}" if code < 0x10000 else chr(min(code, sys.maxunicode))
    return _ESCAPES.get(kind, escaped("\\" + kind))
