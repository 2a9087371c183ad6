"""What a child process of trial.py does: compiles grammars, to see whether it can."""

from __future__ import annotations

import time
from collections.abc import Callable

from gguf_serve.engine.child import serve
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar.source import compilable, fault_of
from gguf_serve.engine.grammar.trial import (
    Answer,
    Fault,
    Grammar,
    Refused,
    Schema,
    Tried,
    encode_answer,
)


def set_up(_: None) -> tuple[Callable[[Grammar | Schema], bytes], bytes]:
    return lambda asked: encode_answer(answer(asked)), b""


def answer(asked: Grammar | Schema) -> Answer:
    if isinstance(asked, Schema):
        return Fault(fault_of(asked.text))
    begin = time.process_time()
    try:
        grammar = compilable(asked.kind, asked.text)
    except RequestError as error:
        return Refused(str(error))
    return Tried(grammar, time.process_time() - begin)


if __name__ == "__main__":
    serve(set_up)
