"""Calls as JSON objects with a name and arguments, alone or in a list, after a start mark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from gguf_serve.engine.chat.json_text import json_fragment, json_value, members, string_value
from gguf_serve.engine.chat.lark import Lark, maybe, one_of, quoted, sequence, several
from gguf_serve.engine.chat.layout import Tools
from gguf_serve.engine.chat.scanner import (
    MalformedError,
    Parse,
    Scanner,
    Sink,
    accept,
    marks,
    skip_space,
)
from gguf_serve.engine.grammar.constraint import Trigger

_ID = {"type": ["string", "integer"]}


class JsonCalls(Struct, frozen=True):
    """``start {"name": ..., "arguments": {...}} end``.

    ``framing`` is how several are written: each with marks of its own, in a list between one
    pair of marks, or in lines between them; all of these are read. With ``id``, the arguments
    wait for it where it is written after them.
    """

    start: str
    end: str = ""
    name: str = "name"
    arguments: str = "arguments"
    id: str = ""
    framing: Literal["each", "list", "lines"] = "each"
    by_name: bool = False  # {"the name": {arguments}}
    end_is_text: bool = False  # elsewhere, the end mark may be a part of the text
    is_bare: bool = False  # no mark tells it from text: name and arguments must be as declared

    def starts(self, tools: Tools) -> tuple[str, ...]:
        return (self.start,) if self.start else ()

    @property
    def dropped(self) -> tuple[str, ...]:
        return () if self.end_is_text or not self.end else (self.end,)

    def triggers(self, tools: Tools) -> tuple[Trigger, ...]:
        return tuple(map(Trigger, self.starts(tools)))

    def grammar(self, lark: Lark, tools: Tools, is_parallel: bool) -> str:
        call = one_of(self._object(lark, name, schema) for name, schema in tools.items())
        start, end = (quoted(mark) if mark else "" for mark in (self.start, self.end))
        if self.framing == "each":
            call = sequence(start, lark.space, call, lark.space, end)
            return several(call, lark.space, is_parallel)
        comma = sequence(lark.space, '","', lark.space) if self.framing == "list" else lark.space
        opening, closing = ('"["', '"]"') if self.framing == "list" else ("", "")
        calls = sequence(lark.space, several(call, comma, is_parallel), lark.space)
        return sequence(start, lark.space, opening, calls, closing, lark.space, end)

    def _object(self, lark: Lark, name: str, schema: Mapping[str, Any]) -> str:
        arguments = lark.arguments(name, schema)
        if self.by_name:
            members = [(name, arguments)]
        else:
            members = [(self.name, quoted(json.dumps(name, ensure_ascii=False)))]
            members.append((self.arguments, arguments))
        first, *rest = (_member(lark, key, value) for key, value in members)
        comma = sequence(lark.space, '","', lark.space)
        id = _member(lark, self.id, lark.schema(_ID)) if self.id else ""
        before, after = (maybe(sequence(id, comma)), maybe(sequence(comma, id))) if id else ("", "")
        inner = sequence(before, first, *(sequence(comma, member) for member in rest), after)
        return lark.rule(sequence('"{"', lark.space, inner, lark.space, '"}"'))

    def read(self, scanner: Scanner, start: str, tools: Tools) -> Parse[None]:
        yield from skip_space(scanner)
        in_list = yield from accept(scanner, marks("["))
        while True:
            yield from (_named_call(scanner) if self.by_name else self._call(scanner, tools))
            yield from skip_space(scanner)
            comma = yield from accept(scanner, marks(",", ";"))
            yield from skip_space(scanner)
            if comma is None and not scanner.text.startswith("{", scanner.pos):
                break
        if in_list:
            yield from accept(scanner, marks("]"))
        yield from skip_space(scanner)
        yield from accept(scanner, marks(self.end))

    def _call(self, scanner: Scanner, tools: Tools) -> Parse[None]:
        call = _Call(scanner, waits_for_id=bool(self.id))
        has_arguments = False
        while (key := (yield from members(scanner))) is not None:
            if key == self.name:
                call.name = yield from string_value(scanner)
                if not self.is_bare:
                    call.arguments("")
                elif call.name not in tools:
                    raise MalformedError
            elif key == self.id:
                call.id = (yield from json_fragment(scanner)).strip('"')
                call.arguments("")
            elif key == self.arguments:
                has_arguments = True
                yield from _arguments(scanner, call.arguments)
            elif self.is_bare and key != "type":
                raise MalformedError
            else:
                yield from json_fragment(scanner)
        if self.is_bare and not has_arguments:
            raise MalformedError
        call.end()


def _member(lark: Lark, key: str, value: str) -> str:
    return sequence(quoted(f'"{key}"'), lark.space, '":"', lark.space, value)


class _Call:
    """A call whose parts come in any order; it begins once its name (and id) are known."""

    def __init__(self, scanner: Scanner, waits_for_id: bool) -> None:
        self.scanner = scanner
        self.waits_for_id = waits_for_id
        self.name = self.id = self._held = ""
        self._began = self._has_arguments = False

    def arguments(self, text: str) -> None:
        """More of them; with "", see whether the call can begin."""
        self._has_arguments |= bool(text)
        if self._began:
            self.scanner.arguments(text)
        elif self.name and (self.id or not self.waits_for_id):
            self._begin(text)
        else:
            self._held += text

    def end(self) -> None:
        if not self.name:
            raise MalformedError
        if not self._began:
            self._begin("")
        if not self._has_arguments:
            self.scanner.arguments("{}")

    def _begin(self, text: str) -> None:
        self._began = True
        self.scanner.begin_call(self.name, self.id)
        self.scanner.arguments(self._held + text)


def _arguments(scanner: Scanner, sink: Sink) -> Parse[None]:
    """The arguments; some models write them as a string of JSON."""
    if scanner.text.startswith('"', scanner.pos):
        sink((yield from string_value(scanner)))
    else:
        yield from json_value(scanner, sink)


def _named_call(scanner: Scanner) -> Parse[None]:
    name = yield from members(scanner)
    if name is None:
        raise MalformedError
    scanner.begin_call(name)
    yield from _arguments(scanner, scanner.arguments)
    while (yield from members(scanner)) is not None:
        yield from json_fragment(scanner)
