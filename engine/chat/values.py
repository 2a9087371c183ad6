"""Values that are written as bare text: what JSON they are, by the schema of the parameter."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from gguf_serve.engine.chat.json_text import escaped
from gguf_serve.engine.chat.layout import Tools
from gguf_serve.engine.chat.literals import PYTHON, literal
from gguf_serve.engine.chat.scanner import (
    MalformedError,
    Marks,
    Parse,
    Scanner,
    Sink,
    expect,
    skip_space,
    until,
)

Schema = Mapping[str, Any]
Kinds = frozenset[str]  # JSON types; none: any

_MAX_DEPTH = 8
_NESTED = frozenset({"object", "array"})
_OPENERS = {"{": "object", "[": "array", '"': "quoted"}
# The beginnings of what is no string.
_BEGINNINGS = {
    "object": re.compile(r"\s*"),
    "array": re.compile(r"\s*"),
    "number": re.compile(r"\s*[-+.eE\d]*\s*"),
    "integer": re.compile(r"\s*[-+.eE\d]*\s*"),
    "boolean": re.compile(r"\s*(t(r(ue?)?)?|f(a(l(se?)?)?)?|T(r(ue?)?)?|F(a(l(se?)?)?)?)?\s*"),
    "null": re.compile(r"\s*(n(u(ll?)?)?|N(o(ne?)?)?)?\s*"),
    "quoted": re.compile(r"\s*"),  # a string in quotes, where any kind may come
}


def parameter_schema(tools: Tools, name: str, key: str) -> Schema:
    """The schema of a parameter, {} if nothing is known about it; references are followed."""
    root = tools.get(name, {})
    return resolved(property_schema(root, key), root)


def property_schema(schema: Schema, key: str) -> Any:
    return properties(schema).get(key, schema.get("additionalProperties"))


def properties(schema: Schema) -> Mapping[str, Any]:
    """The schemas of an object's properties, whatever the client has sent for them."""
    found = schema.get("properties")
    return found if isinstance(found, Mapping) else {}


def required(schema: Schema) -> list[str]:
    """The properties that must be there, of those that are known."""
    return [key for key in listed(schema.get("required")) if key in properties(schema)]


def resolved(schema: Any, root: Schema) -> Schema:
    for _ in range(10):  # references may go in circles
        if not isinstance(schema, Mapping):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        schema = root
        for step in reference.removeprefix("#/").split("/"):
            schema = schema.get(step, {}) if isinstance(schema, Mapping) else {}
    return {}


def kinds_of(schema: Schema, root: Schema | None = None, depth: int = 0) -> Kinds:
    """The JSON types that a schema allows; none if it does not say, or is no schema."""
    root = schema if root is None else root
    schema = resolved(schema, root)
    found: set[str] = set()
    if depth > _MAX_DEPTH:  # alternatives that are each other's
        return frozenset()
    if "type" in schema:
        found.update(t for t in listed(schema["type"]) if isinstance(t, str))
    elif "enum" in schema or "const" in schema:
        found.update(map(kind, listed(schema.get("enum", [schema.get("const")]))))
    elif choices := schema.get("anyOf") or schema.get("oneOf"):
        each = [kinds_of(choice, root, depth + 1) for choice in listed(choices)]
        found.update(*each if all(each) else ())
    elif parts := schema.get("allOf"):
        each = [kinds_of(part, root, depth + 1) for part in listed(parts)]
        found.update(next(filter(None, each), ()))
    if found and schema.get("nullable"):
        found.add("null")
    return frozenset(found)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def kind(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return "null" if value is None else names.get(type(value), "object")


def as_json(text: str, kinds: Kinds) -> str:
    """The JSON text of a value; a string where it is nothing else that the kinds allow."""
    try:
        bare = _python_as_json(text.strip())
        found = kind(json.loads(bare))
    except (MalformedError, ValueError):
        return json.dumps(text, ensure_ascii=False)
    allowed = kinds | ({"integer"} if "number" in kinds else set())
    if not kinds or found in allowed or (found == "number" and "integer" in kinds):
        return bare
    return json.dumps(text, ensure_ascii=False)


def read_value(scanner: Scanner, end: Marks, kinds: Kinds, sink: Sink) -> Parse[None]:
    """Send the text up to ``end``, which is skipped, as JSON, as early as its kind is clear.

    MalformedError where the text ends or an object or array goes wrong.
    """
    if kinds and kinds <= _NESTED:
        yield from skip_space(scanner)
        if scanner.text[scanner.pos : scanner.pos + 1] in ("{", "["):
            yield from literal(scanner, sink, PYTHON)
            yield from skip_space(scanner)
            yield from expect(scanner, end)
            return
    value = _Value(kinds, sink)
    if (yield from until(scanner, end, value.more)) is None:
        raise MalformedError
    value.end()


class _Value:
    """Text that may be a string or something else; sent as a string once nothing else fits."""

    def __init__(self, kinds: Kinds, sink: Sink) -> None:
        self._sink = sink
        self._kinds = kinds
        self._held = ""
        self._is_string = False
        self._is_nested = False  # it may be: only its end shows
        self._others = {k: form for k, form in _BEGINNINGS.items() if not kinds or k in kinds}

    def more(self, text: str) -> None:
        if self._is_string:
            self._sink(escaped(text))
            return
        self._held += text
        if self._is_nested:
            return
        if _OPENERS.get(self._held.lstrip()[:1]) in self._others:
            self._is_nested = True
            return
        is_open = any(beginning.fullmatch(self._held) for beginning in self._others.values())
        if not is_open and (not self._kinds or "string" in self._kinds):
            self._is_string = True
            self._sink('"' + escaped(self._held))

    def end(self) -> None:
        if self._is_string:
            self._sink('"')
        elif self._kinds == {"string"}:
            self._sink('""')  # no text came at all
        else:
            self._sink(as_json(self._held, self._kinds))


def _python_as_json(text: str) -> str:
    """A whole text in JSON's or Python's notation; MalformedError if it is in neither."""
    scanner, parts = Scanner(), list[str]()
    scanner.feed(text)
    scanner.ended = True
    with contextlib.suppress(StopIteration):
        next(literal(scanner, parts.append, PYTHON))
    if scanner.pos != len(text):
        raise MalformedError
    return "".join(parts)
