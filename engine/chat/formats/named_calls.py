"""Calls whose name is written in front of JSON arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct

from gguf_serve.engine.chat.json_text import json_value
from gguf_serve.engine.chat.lark import Lark, in_sections, maybe, one_of, quoted, sequence
from gguf_serve.engine.chat.layout import Tools
from gguf_serve.engine.chat.scanner import Parse, Scanner, enclosed, expect, marks, skip_space
from gguf_serve.engine.grammar.constraint import Trigger

_FIELD = re.compile(r"\{(name|id)\}")
_FULL_ID = re.compile(r"(?:functions\.)?(.+?)(?::\d+)?")  # of Kimi K2: functions.NAME:0


class NamedCalls(Struct, frozen=True):
    """``start header arguments end``, the header holding ``{name}`` and ``{id}``.

    ``section`` are marks around all calls. A header without a name has it in the id.
    """

    start: str
    header: str
    end: str = ""
    section: tuple[str, ...] = ()

    def starts(self, tools: Tools) -> tuple[str, ...]:
        return (self.start,)

    @property
    def dropped(self) -> tuple[str, ...]:
        return (*self.section, self.end) if self.end else self.section

    def triggers(self, tools: Tools) -> tuple[Trigger, ...]:
        return tuple(map(Trigger, (*self.section[:1], self.start)))

    def grammar(self, lark: Lark, tools: Tools, is_parallel: bool) -> str:
        call = one_of(
            sequence(*self._header(lark, name), lark.arguments(name, schema))
            for name, schema in tools.items()
        )
        end = maybe(sequence(lark.space, quoted(self.end))) if self.end else ""
        call = sequence(quoted(self.start), call, end)
        return in_sections(lark, call, self.section, is_parallel)

    def _header(self, lark: Lark, name: str) -> Iterator[str]:
        for place, part in enumerate(_FIELD.split(self.header)):
            if place % 2 == 0:
                yield quoted(part) if part else ""
            elif part == "name":
                yield quoted(name)
            elif "{name}" in self.header:
                yield lark.rule("/[A-Za-z0-9_-]{1,64}/")
            else:
                yield sequence(quoted(f"functions.{name}:"), lark.rule("/[0-9]{1,4}/"))

    def read(self, scanner: Scanner, start: str, tools: Tools) -> Parse[None]:
        # Literals and fields in turns, literals first and last.
        first, *rest = _FIELD.split(self.header)
        if first:
            yield from expect(scanner, marks(first))
        fields = {}
        for field, literal in zip(rest[::2], rest[1::2], strict=True):
            fields[field] = (yield from enclosed(scanner, marks(literal))).strip()
        id = fields.get("id", "")
        yield from skip_space(scanner)
        scanner.begin_call(fields.get("name") or _name_in(id), id)
        yield from json_value(scanner, scanner.arguments)


def _name_in(id: str) -> str:
    found = _FULL_ID.fullmatch(id)
    return found[1] if found else id
