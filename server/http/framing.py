"""How the objects of a streamed answer are written: three forms of SSE, and NDJSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

encode = msgspec.json.Encoder().encode


def sse(chunk: object) -> bytes:
    return b"data: " + encode(chunk) + b"\n\n"


def named_sse(event: Mapping[str, Any]) -> bytes:
    """An event that its ``type`` names, as OpenAI's Responses and Anthropic send them."""
    name: str = event["type"]
    return b"event: " + name.encode() + b"\ndata: " + encode(event) + b"\n\n"


def line(chunk: object) -> bytes:
    return encode(chunk) + b"\n"


class Framing(Struct, frozen=True):
    """``frame`` writes one object; ``ping`` fills silence, ``done`` ends what went well."""

    media_type: str
    frame: Callable[[Any], bytes]
    ping: bytes = b""
    done: bytes = b""


EVENT_STREAM = "text/event-stream; charset=utf-8"
SSE_DONE = Framing(EVENT_STREAM, sse, b":\n\n", b"data: [DONE]\n\n")
SSE = Framing(EVENT_STREAM, sse, b":\n\n")
NAMED_SSE = Framing(EVENT_STREAM, named_sse, b":\n\n")
NDJSON = Framing("application/x-ndjson", line)
