"""Grammars that are put together from rules."""

from __future__ import annotations

from gguf_serve.engine.chat.lark import Lark


def test_equal_rules_are_one() -> None:
    lark = Lark()
    names = [lark.rule('"a"'), lark.recursive('"(" {} ")"'.format), lark.rule('"b"')]
    assert [lark.rule('"a"'), lark.recursive('"(" {} ")"'.format), lark.rule('"b"')] == names
    assert lark.grammar(names[1]).splitlines() == [
        "start: r1", 'r0: "a"', 'r1: "(" r1 ")"', 'r2: "b"',
    ]  # fmt: skip
    assert lark.recursive('"[" {} "]"'.format) not in names
