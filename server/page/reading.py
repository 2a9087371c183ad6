"""Reading what a model or a stranger wrote, in a child process: Markdown, and PDF files.

Nobody has bounded the time that their parsers take; a child can be ended (engine/child.py).
"""

from __future__ import annotations

import msgspec

from gguf_serve.engine.child import ChildError, Limits, Pool

MODULE = "gguf_serve.server.page.process"
LIMITS = Limits(seconds=5.0, memory=256 << 20)  # of one text or document
MOST = 2  # children
_CHILDREN = Pool(MODULE, None, most=MOST, limits=LIMITS, ahead=False)


class Markdown(msgspec.Struct, frozen=True):
    """A message: text to be made HTML."""

    text: str


class Pdf(msgspec.Struct, frozen=True):
    """A message: a file, whose text is wanted."""

    content: bytes


class Text(msgspec.Struct, frozen=True, tag=True):
    """An answer: HTML, or what a document says."""

    text: str


class Unreadable(msgspec.Struct, frozen=True, tag=True):
    """An answer: why there is none."""

    reason: str


encode_answer = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(Text | Unreadable).decode


def read(message: Markdown | Pdf) -> Text | Unreadable:
    """What a child makes of it, waiting for one."""
    try:
        return _decode_answer(_CHILDREN.ask(message))
    except ChildError as error:
        return Unreadable(str(error))
    except msgspec.MsgspecError:
        return Unreadable("its process answered nonsense")
