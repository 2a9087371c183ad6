"""Calls as JSON objects with a name and arguments, alone or in a list, after a start mark."""

from __future__ import annotations

from dataclasses import dataclass

from engine.chat.json_text import json_fragment, json_value, members, string_value
from engine.chat.layout import Tools
from engine.chat.scanner import MalformedError, Parse, Scanner, Sink, accept, marks, skip_space


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """``start [{"name": ..., "arguments": {...}}, ...] end``; brackets and commas are optional.

    With ``id``, the arguments wait for it where it is written after them.
    """

    start: str
    end: str = ""
    name: str = "name"
    arguments: str = "arguments"
    id: str = ""
    by_name: bool = False  # {"the name": {arguments}}
    end_is_text: bool = False  # elsewhere, the end mark may be a part of the text
    is_bare: bool = False  # no mark tells it from text: name and arguments must be as declared

    def starts(self, tools: Tools) -> tuple[str, ...]:
        return (self.start,) if self.start else ()

    @property
    def dropped(self) -> tuple[str, ...]:
        return () if self.end_is_text or not self.end else (self.end,)

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
