"""Pieces of llguidance's Lark grammars that the syntaxes of calls are put together from.

An expression is a text that can stand in a rule; what needs a rule of its own gets one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from gguf_serve.engine.chat.enforceable import enforceable, json_rule
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar.trial import Examination

_SPACE = r"/[ \t\r\n]{0,40}/"


class Lark:
    """The rules of one grammar. ``strict`` are the tools whose schemas hold to the letter."""

    def __init__(self, strict: Collection[str] = ()) -> None:
        self._strict = strict
        self._examination = Examination()
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}  # of rules, by what they say

    def rule(self, expression: str, options: str = "") -> str:
        """The name of a rule; equal expressions share one."""
        key = f"{options}: {expression}"
        name = self._names.setdefault(key, f"r{len(self._names)}")
        self._rules[name] = f"{name}{key}"
        return name

    def recursive(self, expression_of: Callable[[str], str]) -> str:
        """A rule that speaks of itself, by the name that is given to the function, which adds
        no rules; equal ones are one."""
        key = expression_of("itself")
        if key not in self._names:
            name = self._names[key] = f"r{len(self._names)}"
            self._rules[name] = f"{name}: {expression_of(name)}"
        return self._names[key]

    @property
    def space(self) -> str:
        """As much white space as anybody writes between the parts of a call."""
        return self.rule(_SPACE)

    def schema(
        self, schema: Mapping[str, Any], is_strict: bool = True, what: str = "JSON schema"
    ) -> str:
        """JSON that is valid by a schema. What cannot be enforced is a RequestError, or if not
        strict any JSON."""
        try:
            form = schema if is_strict else enforceable(schema, self._examination)
            rule = json_rule(form, is_strict)
        except RecursionError:
            raise RequestError(f"invalid {what}: it is nested too deeply") from None
        fault = self._examination.fault(rule) if is_strict else None
        if fault is not None:
            raise RequestError(f"invalid {what}: {fault}")
        return self.rule(f"%json {rule}")

    def arguments(self, name: str, schema: Mapping[str, Any]) -> str:
        what = f"parameters of the strict tool {name!r}"
        return self.schema({"type": "object", **schema}, name in self._strict, what)

    def text(self, end: str) -> str:
        """Any text up to ``end``, and that."""
        return self.rule(r"/(.|\n)*/", f"[suffix={quoted(end)}]")

    def grammar(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self._rules.values()])


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def maybe(expression: str) -> str:
    return f"({expression})?" if expression else ""


def one_of(expressions: Iterable[str]) -> str:
    return "(" + " | ".join(expressions) + ")"


def sequence(*parts: str) -> str:
    return " ".join(filter(None, parts))


def several(item: str, separator: str, is_parallel: bool) -> str:
    """The item once, or as often as wanted."""
    return sequence(item, f"({sequence(separator, item)})*" if is_parallel else "")


def in_sections(lark: Lark, call: str, section: tuple[str, ...], is_parallel: bool) -> str:
    """A call or several between marks, around each or all; models leave out any of these."""
    if section:
        opening, closing = (quoted(mark) for mark in section)
        call = sequence(f"({opening} {lark.space})?", call, f"({lark.space} {closing})?")
    return several(call, lark.space, is_parallel)
