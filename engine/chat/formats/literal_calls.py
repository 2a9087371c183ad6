"""Calls whose arguments are not JSON: Python calls of LFM2 and Llama 4, Gemma 4's maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.chat.formats.param_calls import parameters
from engine.chat.lark import Lark, maybe, one_of, quoted, sequence, several
from engine.chat.layout import Tools
from engine.chat.literals import GEMMA, PYTHON, Notation, bare_word, mapping
from engine.chat.scanner import Parse, Scanner, accept, enclosed, expect, marks, skip_space
from engine.chat.values import Kinds, kinds_of, listed, parameter_schema, properties, required
from engine.constraint import Trigger

_NUMBER = r"/-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/"
_INTEGER = r"/-?(0|[1-9][0-9]*)/"
_KEY = "/[A-Za-z0-9_-]+/"


@dataclass(frozen=True, slots=True)
class PythonCalls:
    """``start [name(key=value, ...), ...] end``."""

    start: str
    end: str

    def starts(self, tools: Tools) -> tuple[str, ...]:
        return (self.start,)

    @property
    def dropped(self) -> tuple[str, ...]:
        return (self.end,)

    def triggers(self, tools: Tools) -> tuple[Trigger, ...]:
        return (Trigger(self.start),)

    def grammar(self, lark: Lark, tools: Tools, is_parallel: bool) -> str:
        call = one_of(
            sequence(quoted(name + "("), _arguments(lark, PYTHON, tools, name, "="), '")"')
            for name in tools
        )
        calls = several(call, sequence('","', lark.space), is_parallel)
        return sequence(quoted(self.start), '"["', calls, '"]"', quoted(self.end))

    def read(self, scanner: Scanner, start: str, tools: Tools) -> Parse[None]:
        yield from skip_space(scanner)
        in_list = yield from accept(scanner, marks("["))
        while True:
            yield from skip_space(scanner)
            name = yield from bare_word(scanner)
            yield from expect(scanner, marks("("))
            scanner.begin_call(name)
            yield from mapping(scanner, scanner.arguments, PYTHON, marks("="), ")")
            yield from skip_space(scanner)
            if (yield from accept(scanner, marks(","))) is None:
                break
        if in_list:
            yield from accept(scanner, marks("]"))


@dataclass(frozen=True, slots=True)
class GemmaCalls:
    """``<|tool_call>call:name{key:<|"|>text<|"|>, ...}<tool_call|>``."""

    start: str
    end: str

    def starts(self, tools: Tools) -> tuple[str, ...]:
        return (self.start,)

    @property
    def dropped(self) -> tuple[str, ...]:
        return (self.end,)

    def triggers(self, tools: Tools) -> tuple[Trigger, ...]:
        return (Trigger(self.start),)

    def grammar(self, lark: Lark, tools: Tools, is_parallel: bool) -> str:
        call = one_of(
            sequence(quoted(f"call:{name}{{"), _arguments(lark, GEMMA, tools, name, ":"), '"}"')
            for name in tools
        )
        return several(sequence(quoted(self.start), call, quoted(self.end)), "", is_parallel)

    def read(self, scanner: Scanner, start: str, tools: Tools) -> Parse[None]:
        yield from skip_space(scanner)
        yield from expect(scanner, marks("call:"))
        name = yield from enclosed(scanner, marks("{"))
        scanner.begin_call(name.strip())
        yield from mapping(scanner, scanner.arguments, GEMMA, marks(":"), "}")


def _arguments(lark: Lark, notation: Notation, tools: Tools, name: str, colon: str) -> str:
    schema = tools[name]
    written = {}
    for key in properties(schema):
        parameter = parameter_schema(tools, name, key)
        choices = listed(parameter.get("enum") or [])
        kinds = kinds_of(parameter, schema)
        value = _value(lark, notation, kinds, choices)
        written[key] = sequence(quoted(key + colon), lark.space, value)
    return parameters(lark, written, required(schema), sequence('","', lark.space))


def _value(lark: Lark, notation: Notation, kinds: Kinds, choices: Sequence[object] = ()) -> str:
    """A value of one of the kinds; what is in objects and arrays may be of any kind."""
    if choices and all(isinstance(choice, str) for choice in choices):
        quote = notation.quotes[0]
        return one_of(quoted(f"{quote}{choice}{quote}") for choice in choices)
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
    return {**plain, "object": _object(nested), "array": _array(nested)}


def _string(lark: Lark, quote: str, has_escapes: bool) -> str:
    if not has_escapes:
        return sequence(quoted(quote), lark.text(quote))
    return lark.rule(rf"/{quote}([^{quote}\\\n]|\\[nrtbf\\'\"])*{quote}/")
