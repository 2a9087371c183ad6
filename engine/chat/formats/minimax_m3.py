"""MiniMax M3: a tag for each parameter, item and property, as deep as the schema goes."""

from __future__ import annotations

import json

from msgspec import Struct

from gguf_serve.engine.chat.formats.param_calls import parameters
from gguf_serve.engine.chat.json_text import MAX_DEPTH
from gguf_serve.engine.chat.lark import Lark, in_sections, one_of, quoted, sequence
from gguf_serve.engine.chat.layout import Tools
from gguf_serve.engine.chat.scanner import (
    MalformedError,
    Parse,
    Scanner,
    accept,
    enclosed,
    expect,
    marks,
    skip_space,
)
from gguf_serve.engine.chat.values import (
    Schema,
    kinds_of,
    listed,
    parameter_schema,
    properties,
    property_schema,
    read_value,
    required,
    resolved,
)
from gguf_serve.engine.grammar.constraint import Trigger

_MARK = "]<]minimax[>["  # in front of every tag
_ITEM = "item"
_MAX_GRAMMAR_DEPTH = 4  # below it, any text
_NESTED = frozenset({"object", "array"})


class MinimaxM3Calls(Struct, frozen=True):
    """``<invoke name="NAME"> <key>text</key> <key><item>text</item>...</key> </invoke>``."""

    def starts(self, tools: Tools) -> tuple[str, ...]:
        return (_MARK + '<invoke name="',)

    @property
    def dropped(self) -> tuple[str, ...]:
        return (_MARK + "<tool_call>", _MARK + "</tool_call>")

    def triggers(self, tools: Tools) -> tuple[Trigger, ...]:
        return tuple(map(Trigger, (self.dropped[0], *self.starts(tools))))

    def grammar(self, lark: Lark, tools: Tools, is_parallel: bool) -> str:
        call = one_of(
            sequence(
                quoted(f'{_MARK}<invoke name="{name}">'),
                _properties(lark, schema, schema, 0),
                quoted(f"{_MARK}</invoke>"),
            )
            for name, schema in tools.items()
        )
        return in_sections(lark, call, self.dropped, is_parallel)

    def read(self, scanner: Scanner, start: str, tools: Tools) -> Parse[None]:
        name = yield from enclosed(scanner, marks('">'))
        scanner.begin_call(name)
        root = tools.get(name, {})
        scanner.arguments("{")
        separator = ""
        while (key := (yield from _tag(scanner, "invoke"))) is not None:
            scanner.arguments(f"{separator}{json.dumps(key, ensure_ascii=False)}:")
            yield from _value(scanner, key, parameter_schema(tools, name, key), root, 0)
            separator = ","
        scanner.arguments("}")


def _tag(scanner: Scanner, parent: str) -> Parse[str | None]:
    """The next tag's name, None at the end of the parent."""
    yield from skip_space(scanner)
    if (yield from expect(scanner, marks(f"{_MARK}<", f"{_MARK}</{parent}>"))) == f"{_MARK}<":
        return (yield from enclosed(scanner, marks(">")))
    return None


def _value(scanner: Scanner, tag: str, schema: Schema, root: Schema, depth: int) -> Parse[None]:
    """What is in a tag, up to its end, which is skipped."""
    kinds = kinds_of(schema, root)
    end = f"{_MARK}</{tag}>"
    if "string" in kinds or (kinds and not kinds & _NESTED) or depth > MAX_DEPTH:
        # Where text is allowed, tags are text.
        return (yield from read_value(scanner, marks(end), kinds - _NESTED, scanner.arguments))
    mark = yield from accept(scanner, marks(end, f"{_MARK}<"))
    if mark is None:
        return (yield from read_value(scanner, marks(end), kinds, scanner.arguments))
    if mark == end:
        empty = "[]" if "array" in kinds else "{}" if "object" in kinds else '""'
        return scanner.arguments(empty)
    name = yield from enclosed(scanner, marks(">"))
    is_array = name == _ITEM and "array" in (kinds or {"array"})
    yield from _nested(scanner, tag, name, is_array, _branch(schema, root, is_array), root, depth)
    return None


def _nested(
    scanner: Scanner,
    tag: str,
    name: str | None,
    is_array: bool,
    schema: Schema,
    root: Schema,
    depth: int,
) -> Parse[None]:
    scanner.arguments("[" if is_array else "{")
    separator = ""
    while name is not None:
        if is_array and name != _ITEM:
            raise MalformedError
        key = "" if is_array else f"{json.dumps(name, ensure_ascii=False)}:"
        inner = schema.get("items") if is_array else property_schema(schema, name)
        scanner.arguments(separator + key)
        separator = ","
        yield from _value(scanner, name, resolved(inner, root), root, depth + 1)
        name = yield from _tag(scanner, tag)
    scanner.arguments("]" if is_array else "}")


def _branch(schema: Schema, root: Schema, is_array: bool) -> Schema:
    """Of alternatives the one for arrays, or for objects."""
    wanted = "array" if is_array else "object"
    choices = listed(schema.get("anyOf") or schema.get("oneOf") or [])
    fitting = (resolved(c, root) for c in choices if wanted in kinds_of(c, root))
    return next(fitting, schema)


def _properties(lark: Lark, schema: Schema, root: Schema, depth: int) -> str:
    written = {
        key: sequence(_tagged(lark, key, resolved(inner, root), root, depth), lark.space)
        for key, inner in properties(schema).items()
    }
    return parameters(lark, written, required(schema))


def _tagged(lark: Lark, tag: str, schema: Schema, root: Schema, depth: int) -> str:
    """A value with its tags."""
    kinds = kinds_of(schema, root)
    opening, end = quoted(f"{_MARK}<{tag}>"), f"{_MARK}</{tag}>"
    is_open = "object" in kinds and not properties(_branch(schema, root, False))
    if not kinds or "string" in kinds or is_open or depth > _MAX_GRAMMAR_DEPTH:
        return sequence(opening, lark.text(end))
    forms = []
    if kinds - _NESTED:
        forms.append(lark.schema({"type": sorted(kinds - _NESTED)}))
    if "object" in kinds:
        forms.append(_properties(lark, _branch(schema, root, False), root, depth + 1))
    if "array" in kinds:
        items = resolved(_branch(schema, root, True).get("items"), root)
        forms.append(f"({_tagged(lark, _ITEM, items, root, depth + 1)})*")
    return sequence(opening, one_of(form or '""' for form in forms), quoted(end))
