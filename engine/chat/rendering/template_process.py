"""What a child process of confined.py does: compiles a model's templates and renders them.

Imports no more than templates need: no arrays, no device, 25 MB in all.
"""

from __future__ import annotations

from collections.abc import Callable

from gguf_serve.engine.chat.rendering.confined import (
    Answer,
    Asked,
    Compiled,
    Probed,
    Refused,
    Templates,
    Written,
    encode_answer,
)
from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.child import serve
from gguf_serve.engine.errors import EngineError


def set_up(templates: Templates) -> tuple[Callable[[Asked], bytes], bytes]:
    """Compile; the answer is Refused if that fails, and nothing can be asked then."""
    try:
        template = ChatTemplate(
            templates.default,
            tool_use=templates.tool_use,
            bos_token=templates.bos_token,
            eos_token=templates.eos_token,
        )
    except EngineError as error:
        refused = encode_answer(Refused(str(error)))
        return lambda asked: refused, refused
    return lambda asked: encoded(answer(template, asked)), encode_answer(Compiled())


def answer(template: ChatTemplate, asked: Asked) -> Answer:
    template = template.for_tools(asked.has_tools)
    if asked.conversation is None:
        return Probed(template.caps)
    if asked.caps is not None:
        template.caps = asked.caps  # another process may have found them
    try:
        return Written(template.prompt(asked.conversation))
    except EngineError as error:
        return Refused(str(error))


def encoded(answer: Answer) -> bytes:
    try:
        return encode_answer(answer)
    except UnicodeEncodeError:  # half of a surrogate pair, which a template can write
        return encode_answer(Refused("chat template: it has written what is no text"))


if __name__ == "__main__":
    serve(set_up)
