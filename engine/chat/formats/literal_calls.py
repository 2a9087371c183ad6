"""Calls whose arguments are not JSON: Python calls of LFM2, Gemma 4's maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from gguf_serve.engine.chat.formats.param_calls import parameters
from gguf_serve.engine.chat.json_text import escaped
from gguf_serve.engine.chat.lark import Lark, maybe, one_of, quoted, sequence, several
from gguf_serve.engine.chat.layout import Tools
from gguf_serve.engine.chat.literals import Notation, bare_word, mapping
from gguf_serve.engine.chat.scanner import (
    Parse,
    Scanner,
    accept,
    enclosed,
    expect,
    marks,
    skip_space,
)
from gguf_serve.engine.chat.values import (
    Kinds,
    kinds_of,
    listed,
    parameter_schema,
    properties,
    required,
)
from gguf_serve.engine.grammar.constraint import Trigger

_NUMBER = r"/-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/"
_INTEGER = r"/-?(0|[1-9][0-9]*)/"
_KEY = "/[A-Za-z0-9_-]+/"


class LiteralCalls(Struct, frozen=True):
    """``start prefix NAME opening KEY colon VALUE, ... closer end``.

    In a list, several calls stand between one ``start`` and ``end``: [call, ...].
    """

    start: str
    end: str
    notation: Notation  # of keys and values
    opening: str
    colon: str
    closer: str
    prefix: str = ""
    in_list: bool = False

    def starts(self, tools: Tools) -> tuple[str, ...]:
        return (self.start,)

    @property
    def dropped(self) -> tuple[str, ...]:
        return (self.end,)

    def triggers(self, tools: Tools) -> tuple[Trigger, ...]:
        return (Trigger(self.start),)

    def grammar(self, lark: Lark, tools: Tools, is_parallel: bool) -> str:
        start, end = quoted(self.start), quoted(self.end)
        call = one_of(self._call(lark, name, tools) for name in tools)
        if self.in_list:
            return sequence(start, '"["', several(call, _comma(lark), is_parallel), '"]"', end)
        return several(sequence(start, call, end), "", is_parallel)

    def _call(self, lark: Lark, name: str, tools: Tools) -> str:
        schema = tools[name]
        written = {}
        for key in properties(schema):
            parameter = parameter_schema(tools, name, key)
            choices = listed(parameter.get("enum") or [])
            value = _value(lark, self.notation, kinds_of(parameter, schema), choices)
            written[key] = sequence(quoted(key + self.colon), lark.space, value)
        arguments = parameters(lark, written, required(schema), _comma(lark))
        return sequence(quoted(self.prefix + name + self.opening), arguments, quoted(self.closer))

    def read(self, scanner: Scanner, start: str, tools: Tools) -> Parse[None]:
        yield from skip_space(scanner)
        bracket = (yield from accept(scanner, marks("["))) if self.in_list else None
        while True:
            yield from self._read_call(scanner)
            yield from skip_space(scanner)
            if not self.in_list or (yield from accept(scanner, marks(","))) is None:
                break
        if bracket:
            yield from accept(scanner, marks("]"))

    def _read_call(self, scanner: Scanner) -> Parse[None]:
        yield from skip_space(scanner)
        if self.prefix:
            yield from expect(scanner, marks(self.prefix))
        if self.notation.has_bare_texts:
            name = (yield from enclosed(scanner, marks(self.opening))).strip()
        else:
            name = yield from bare_word(scanner)
            yield from expect(scanner, marks(self.opening))
        scanner.begin_call(name)
        colon = marks(self.colon)
        yield from mapping(scanner, scanner.arguments, self.notation, colon, self.closer)


def _comma(lark: Lark) -> str:
    return sequence('","', lark.space)


def _value(lark: Lark, notation: Notation, kinds: Kinds, choices: Sequence[Any] = ()) -> str:
    """A value of one of the kinds; what is in objects and arrays may be of any kind."""
    if choices and all(isinstance(choice, str) for choice in choices):
        quote = notation.quotes[0]
        texts = [escaped(choice) if notation.has_escapes else choice for choice in choices]
        return one_of(quoted(f"{quote}{text}{quote}") for text in texts)
    forms = _forms(lark, notation)
    return one_of(form for kind, form in forms.items() if not kinds or kind in kinds)


def _forms(lark: Lark, notation: Notation) -> dict[str, str]:
    """How each kind of value is written."""
    words = {value: word for word, value in notation.words.items()}
    names = [word for word, value in notation.words.items() if value != "null"]
    texts = [_string(lark, quote, notation.has_escapes) for quote in notation.quotes]
    plain = {
        "string": one_of(texts),
        "number": lark.rule(_NUMBER),
        "integer": lark.rule(_INTEGER),
        "boolean": one_of(map(quoted, names)),
        "null": quoted(words["null"]),
    }
    comma = sequence(lark.space, '","', lark.space)

    def any_value(value: str) -> str:
        return one_of([*plain.values(), _object(value), _array(value)])

    def _object(value: str) -> str:
        key = lark.rule(_KEY) if notation.has_bare_texts else plain["string"]
        member = sequence(key, '":"', lark.space, value)
        return sequence('"{"', maybe(several(member, comma, True)), '"}"')

    def _array(value: str) -> str:
        return sequence('"["', maybe(several(value, comma, True)), '"]"')

    nested = lark.recursive(any_value)
    return {**plain, "object": lark.rule(_object(nested)), "array": lark.rule(_array(nested))}


def _string(lark: Lark, quote: str, has_escapes: bool) -> str:
    if not has_escapes:
        return sequence(quoted(quote), lark.text(quote))
    return lark.rule(rf"/{quote}([^{quote}\\\n]|\\[nrtbf\\'\"])*{quote}/")
