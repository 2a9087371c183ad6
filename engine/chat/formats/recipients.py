"""Functionary 3.2: ``>>>all`` in front of text, ``>>>name`` in front of a call's arguments."""

from __future__ import annotations

from engine.chat.json_text import json_value
from engine.chat.layout import Turn
from engine.chat.scanner import Parse, Scanner, accept, marks, until

OPENING = ">>>"  # the first one is in the prompt
_EVERYONE = "all\n"


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
