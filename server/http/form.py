"""Bodies that are forms: fields with texts, and a file."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from msgspec import Struct
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.types import Message

from gguf_serve.server.errors import invalid, shown

MAX_FIELDS = 100
FORM_PIECE = 2**20  # bytes that are parsed at once
BINARY = {"type": "string", "contentMediaType": "application/octet-stream"}


class Upload(Struct, frozen=True):
    """What a form has as a file."""

    name: str
    data: bytes


FormFile = Annotated[Any, msgspec.Meta(extra_json_schema=BINARY)]  # an Upload, in a form's struct


async def read_form(
    http: HttpRequest, read_body: Callable[[HttpRequest], Awaitable[bytes]]
) -> dict[str, Any]:
    """The fields of a form as texts, and ``file`` as an Upload; those left empty are absent, and
    names of lists come without their brackets."""
    kind = http.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise invalid(f"The request body must be multipart/form-data, got {shown(kind)}")
    body = await read_body(http)

    pieces = iter(range(0, len(body), FORM_PIECE))

    async def receive() -> Message:
        await asyncio.sleep(0)  # the loop has its turn between two pieces
        at = next(pieces, len(body))
        end = at + FORM_PIECE
        return {"type": "http.request", "body": body[at:end], "more_body": end < len(body)}

    data: dict[str, Any] = {}
    whole = HttpRequest(http.scope, receive)
    async with whole.form(max_files=1, max_fields=MAX_FIELDS) as form:
        for name, value in form.items():
            if isinstance(value, UploadFile) != (name == "file"):
                expected = "a file" if name == "file" else "a text"
                raise invalid(f"Field '{name:.80}': expected {expected}")
            if isinstance(value, UploadFile):
                data[name] = Upload(value.filename or "", await value.read())
            elif value:
                data[name.removesuffix("[]")] = value
    return data
