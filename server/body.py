"""A request's JSON body: bytes to values, of which there are not so many that they stop the server.

Decoding holds the interpreter's lock, so that no stream goes on meanwhile, and 64 MiB of empty
arrays would take 10 seconds of it and 1.5 GiB.
"""

from __future__ import annotations

import codecs
from typing import Any

import msgspec

from server.errors import ApiError, invalid

MAX_PARTS = 2**20  # arrays, objects, names and strings
MAX_VALUES = 2**21  # numbers are quicker and smaller; these take 0.1 seconds


def read_json(raw: bytes) -> Any:
    """The value of a body; ApiError if it is none, or has more parts than a request needs."""
    check_parts(raw)
    try:
        return msgspec.json.decode(raw.removeprefix(codecs.BOM_UTF8))  # Windows writes one
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"The request body is not valid JSON: {error}") from None


def read_object(raw: bytes) -> dict[str, Any]:
    """The body's fields without nulls; ApiError if it is no object."""
    decoded = read_json(raw)
    if not isinstance(decoded, dict):
        raise invalid("The request body must be a JSON object")
    data = {name: value for name, value in decoded.items() if value is not None}
    for name, value in data.items():
        if type(value) is float and value.is_integer():
            data[name] = int(value)  # 10.0 is an integer in JSON; float fields take both
    return data


def check_parts(raw: bytes) -> None:
    if len(raw) <= MAX_PARTS or (n_marks(raw) <= MAX_PARTS and raw.count(b",") <= MAX_VALUES):
        return
    plain = raw.replace(rb"\\", b"").replace(rb"\"", b"")  # from here on quotes enclose strings
    n_parts, n_values = plain.count(b'"') // 2, 0
    if n_parts <= MAX_PARTS:  # else there would be as many pieces
        outside = b"".join(plain.split(b'"')[::2])
        n_parts += n_marks(outside)
        n_values = outside.count(b",")
    if n_parts > MAX_PARTS:
        message = f"The request body has more than {MAX_PARTS} arrays, objects, names and strings"
        raise ApiError("payload_too_large_error", message)
    if n_values > MAX_VALUES:
        message = f"The request body has more than {MAX_VALUES} values"
        raise ApiError("payload_too_large_error", message)


def n_marks(text: bytes) -> int:
    """At least as many as there are parts: those within strings are counted too."""
    return sum(map(text.count, (b"[", b"{", b":", b'"')))
