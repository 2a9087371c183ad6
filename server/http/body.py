"""A request's JSON body: bytes to values, of which there are not so many that they stop the server.

Decoding holds the interpreter's lock, so that no stream goes on meanwhile, and 64 MiB of empty
arrays would take 10 seconds of it and 1.5 GiB.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from gguf_serve.server.errors import ApiError, invalid

MAX_PARTS = 2**20  # arrays, objects, names and strings
MAX_VALUES = 2**21  # of all arrays and objects together; numbers are quicker and smaller
SLICE = 2**20  # bytes
NO_ESCAPE = re.compile(rb"[^\\]")


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
    """ApiError 413 for a body of too many parts; in slices, between which others have their turn,
    since to count what is dense takes as long as to decode it."""
    if len(raw) <= MAX_PARTS:
        return
    n_quotes = n_marked = n_items = 0
    for part in slices(raw):
        plain = part.replace(rb"\\", b"").replace(rb"\"", b"")  # now quotes enclose strings
        pieces = plain.split(b'"')
        outside = b"".join(pieces[n_quotes % 2 :: 2])
        n_quotes += len(pieces) - 1
        n_marked += n_marks(outside)
        n_items += outside.count(b",")
        if n_marked + n_quotes // 2 > MAX_PARTS:
            raise too_many(MAX_PARTS, "arrays, objects, names and strings")
        if n_items > MAX_VALUES:
            raise too_many(MAX_VALUES, "values")


def slices(raw: bytes) -> Iterator[bytes]:
    """A body in slices, none of which ends in what may be the middle of an escape."""
    at = 0
    while at < len(raw):
        found = NO_ESCAPE.search(raw, at + SLICE)
        end = len(raw) if found is None else found.end()
        yield raw[at:end]
        at = end


def too_many(most: int, what: str) -> ApiError:
    return ApiError("payload_too_large_error", f"The request body has more than {most} {what}")


def n_marks(text: bytes) -> int:
    return sum(map(text.count, (b"[", b"{", b":")))
