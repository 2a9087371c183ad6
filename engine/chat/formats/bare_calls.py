"""Llama 3: a call is an answer that is nothing but ``{"name": ..., "parameters": {...}}``."""

from __future__ import annotations

from gguf_serve.engine.chat.formats.json_calls import JsonCalls
from gguf_serve.engine.chat.layout import Turn, read_fenced
from gguf_serve.engine.chat.scanner import (
    MalformedError,
    Parse,
    Scanner,
    accept,
    marks,
    skip_space,
    until,
)

CALLS = JsonCalls(start="", arguments="parameters", is_bare=True)
_PYTHON_TAG = "<|python_tag|>"


def read_bare(scanner: Scanner, turn: Turn) -> Parse[None]:
    scanner.kept = scanner.pos
    yield from skip_space(scanner)
    yield from accept(scanner, marks(_PYTHON_TAG))
    try:
        if turn.tools and scanner.text.startswith("{", scanner.pos):
            yield from CALLS.read(scanner, "", turn.tools)
    except MalformedError:
        pass
    if scanner.kept >= 0:  # no call
        scanner.pos = scanner.kept
        scanner.kept = -1
    else:
        yield from skip_space(scanner)
    if not (turn.is_json and (yield from read_fenced(scanner))):
        yield from until(scanner, marks(), scanner.content)
