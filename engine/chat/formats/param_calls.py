"""Calls with a tagged text for each parameter; their arguments become JSON as they come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations

from msgspec import Struct

from gguf_serve.engine.chat.lark import Lark, in_sections, maybe, one_of, quoted, sequence
from gguf_serve.engine.chat.layout import Tools
from gguf_serve.engine.chat.scanner import (
    Parse,
    Scanner,
    accept,
    enclosed,
    expect,
    marks,
    skip_space,
    until,
)
from gguf_serve.engine.chat.values import (
    Schema,
    kinds_of,
    listed,
    parameter_schema,
    properties,
    read_value,
    required,
)
from gguf_serve.engine.grammar.constraint import Trigger

_CDATA = ("<![CDATA[", "]]>")
_DEFINITIONS = ("$defs", "definitions")  # what references in a parameter's schema point to
_MAX_TRACKED = 5  # required parameters: a rule for each subset of them


class ParamCalls(Struct, frozen=True):
    """``start NAME name_end (parameter KEY key_end value_start VALUE value_end)* end``.

    Without a ``name_end`` the name goes up to the first parameter or to the end. With a
    ``tag_end``, attributes may stand between ``name_end`` or ``key_end`` and it, and say
    whether a value is a string; what models write there is in the ``..._attributes``, as Lark.
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
    has_cdata: bool = False  # texts may stand in <![CDATA[...]]>
    call_attributes: str = ""
    text_attributes: str = ""
    json_attributes: str = ""

    def starts(self, tools: Tools) -> tuple[str, ...]:
        return (self.start,)

    @property
    def dropped(self) -> tuple[str, ...]:
        return (*self.section, self.end)

    def triggers(self, tools: Tools) -> tuple[Trigger, ...]:
        return tuple(map(Trigger, (*self.section[:1], self.start)))

    def grammar(self, lark: Lark, tools: Tools, is_parallel: bool) -> str:
        call = lark.rule(one_of(self._call(lark, name, tools) for name in tools))
        return in_sections(lark, call, self.section, is_parallel)

    def _call(self, lark: Lark, name: str, tools: Tools) -> str:
        schema = tools[name]
        tag = sequence(self.call_attributes, quoted(self.tag_end)) if self.tag_end else ""
        head = sequence(quoted(self.start + name + self.name_end), tag, lark.space)
        arguments = {key: self._written(lark, tools, name, key) for key in properties(schema)}
        form = parameters(lark, arguments, required(schema))
        return sequence(head, form, quoted(self.end))

    def _written(self, lark: Lark, tools: Tools, name: str, key: str) -> str:
        """One parameter with all its marks, and the white space after it."""
        schema = parameter_schema(tools, name, key)
        kinds = kinds_of(schema, tools[name])
        is_text = not kinds or "string" in kinds
        attributes = self.text_attributes if is_text else self.json_attributes
        tag = sequence(attributes, quoted(self.tag_end)) if self.tag_end else ""
        line = "\n" if self.in_lines else ""
        opening = sequence(lark.space, quoted(self.value_start)) if self.value_start else ""
        if is_text:
            value = _text(lark, schema, line + self.value_end, self.has_cdata)
        else:
            root = {key: tools[name][key] for key in _DEFINITIONS if key in tools[name]}
            value = sequence(lark.schema({**root, **schema}, False), quoted(line + self.value_end))
        head = sequence(quoted(self.parameter + key + self.key_end), tag, opening)
        return sequence(head, quoted(line) if line else "", value, lark.space)

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
        if self.has_cdata and (yield from accept(scanner, marks(_CDATA[0]))):
            end = marks(_CDATA[1] + self.value_end)
        yield from read_value(scanner, end, kinds, scanner.arguments)


def parameters(
    lark: Lark, written: Mapping[str, str], needed: Sequence[str], separator: str = ""
) -> str:
    """Parameters in any order, and all required ones among them, if these are not too many."""
    tracked = frozenset(needed if len(needed) <= _MAX_TRACKED else ())
    later = {key: sequence(separator, expression) for key, expression in written.items()}
    others = [expression for key, expression in later.items() if key not in tracked]
    loop = f"{one_of(others)}*" if others else ""
    rules: dict[frozenset[str], str] = {frozenset(): loop}
    for size in range(1, len(tracked) + 1):
        for missing in map(frozenset, combinations(sorted(tracked), size)):
            steps = (sequence(later[key], rules[missing - {key}]) for key in sorted(missing))
            rules[missing] = lark.rule(sequence(loop, one_of(steps)))
    if not separator or not written:
        return rules[tracked]
    first = one_of(sequence(written[key], rules[tracked - {key}]) for key in written)
    return first if tracked else maybe(first)


def _text(lark: Lark, schema: Schema, end: str, has_cdata: bool) -> str:
    """A string as it is, up to its end; one of several if the schema says which."""
    choices = listed(schema.get("enum", [schema["const"]] if "const" in schema else []))
    if choices and all(isinstance(choice, str) for choice in choices):
        return sequence(one_of(map(quoted, choices)), quoted(end))
    if not has_cdata:
        return lark.text(end)
    plain = lark.rule(r"/([^<]|<[^!])(.|\n)*/", f"[suffix={quoted(end)}]")
    marked = sequence(quoted(_CDATA[0]), lark.text(_CDATA[1] + end))
    return one_of([quoted(end), plain, marked])
