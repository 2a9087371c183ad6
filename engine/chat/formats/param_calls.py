"""Calls with a tagged text for each parameter; their arguments become JSON as they come."""

from __future__ import annotations

import json
from dataclasses import dataclass

from engine.chat.layout import Tools
from engine.chat.scanner import Parse, Scanner, accept, enclosed, expect, marks, skip_space, until
from engine.chat.values import kinds_of, parameter_schema, read_value

_CDATA = ("<![CDATA[", "]]>")


@dataclass(frozen=True, slots=True)
class ParamCalls:
    """``start NAME name_end (parameter KEY key_end value_start VALUE value_end)* end``.

    Without a ``name_end`` the name goes up to the first parameter or to the end. With a
    ``tag_end``, attributes may stand between ``name_end`` or ``key_end`` and it: one of them
    may say that a value is a string, or none. Of marks given as "a|b", both are known.
    """

    start: str
    name_end: str
    parameter: str
    key_end: str
    value_end: str
    end: str
    value_start: str = ""
    tag_end: str = ""
    section: tuple[str, ...] = ()  # marks around one or all calls
    in_lines: bool = False  # values stand in lines of their own

    def starts(self, tools: Tools) -> tuple[str, ...]:
        return (self.start,)

    @property
    def dropped(self) -> tuple[str, ...]:
        return (*self.section, self.end)

    def read(self, scanner: Scanner, start: str, tools: Tools) -> Parse[None]:
        name = yield from self._name(scanner)
        yield from skip_space(scanner)
        mark = yield from expect(scanner, marks(self.parameter, self.end))
        scanner.begin_call(name)
        scanner.arguments("{")
        separator = ""
        while mark == self.parameter:
            yield from self._argument(scanner, name, tools, separator)
            separator = ","
            yield from skip_space(scanner)
            mark = yield from expect(scanner, marks(self.parameter, self.end))
        scanner.arguments("}")

    def _name(self, scanner: Scanner) -> Parse[str]:
        if self.name_end:
            name = yield from enclosed(scanner, marks(self.name_end))
            if self.tag_end:
                yield from enclosed(scanner, marks(self.tag_end))
            return name.strip()
        parts: list[str] = []
        mark = yield from until(scanner, marks(self.parameter, self.end), parts.append)
        scanner.pos -= len(mark or "")
        return "".join(parts).strip()

    def _argument(self, scanner: Scanner, name: str, tools: Tools, separator: str) -> Parse[None]:
        key = (yield from enclosed(scanner, marks(self.key_end))).strip()
        kinds = kinds_of(parameter_schema(tools, name, key), tools.get(name, {}))
        if self.tag_end:
            attributes = yield from enclosed(scanner, marks(self.tag_end))
            if 'string="true"' in attributes or 'type="string"' in attributes:
                kinds = frozenset({"string"})
            elif 'string="false"' in attributes or "type=" in attributes:
                kinds -= {"string"}
        scanner.arguments(separator + json.dumps(key, ensure_ascii=False) + ":")
        if self.value_start:
            yield from skip_space(scanner)
            yield from expect(scanner, marks(self.value_start))
        end = marks(self.value_end)
        if self.in_lines:
            yield from accept(scanner, marks("\n"))
            end = marks("\n" + self.value_end, self.value_end)
        if (yield from accept(scanner, marks(_CDATA[0]))):
            end = marks(_CDATA[1] + self.value_end)
        yield from read_value(scanner, end, kinds, scanner.arguments)
