"""Functionary 3.2: ``>>>all`` in front of text, ``>>>name`` in front of a call's arguments."""

from __future__ import annotations

import re

from gguf_serve.engine.chat.json_text import json_value
from gguf_serve.engine.chat.lark import Lark, one_of, quoted, sequence, several
from gguf_serve.engine.chat.layout import Tools, Turn
from gguf_serve.engine.chat.scanner import Parse, Scanner, accept, marks, until
from gguf_serve.engine.grammar.constraint import Trigger

OPENING = ">>>"  # the first one is in the prompt
_EVERYONE = "all\n"


class RecipientCalls:
    def triggers(self, tools: Tools) -> tuple[Trigger, ...]:
        names = "|".join(map(re.escape, tools))
        return (Trigger(rf"{OPENING}((?:{names})\n)", is_pattern=True),)

    def grammar(self, lark: Lark, tools: Tools, is_parallel: bool) -> str:
        call = one_of(
            sequence(quoted(f"{name}\n"), lark.arguments(name, schema))
            for name, schema in tools.items()
        )
        return several(call, sequence(lark.space, quoted(OPENING)), is_parallel)


def read_recipients(scanner: Scanner, turn: Turn) -> Parse[None]:
    recipients = (_EVERYONE, *(f"{name}\n" for name in turn.tools))
    stops = marks(*(OPENING + recipient for recipient in recipients))
    mark = yield from accept(scanner, marks(*recipients))
    while True:
        recipient = (mark or _EVERYONE).removeprefix(OPENING)
        if recipient != _EVERYONE:
            scanner.begin_call(recipient.strip())
            yield from json_value(scanner, scanner.arguments)
        mark = yield from until(scanner, stops, scanner.content)
        if mark is None:
            return
