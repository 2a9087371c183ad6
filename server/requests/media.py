"""Images and sounds in a conversation: found, fetched, decoded, and a marker in their place.

Every dialect has made them parts of OpenAI's shape: ``image_url``, ``input_audio``, and
llama-server's ``input_video`` and ``video_url``, each with base64 or a URL (also data: and file:).
What cannot be used is a 400 that names the part.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
import string
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from msgspec import Struct

from gguf_serve.engine.errors import ContextOverflowError, EngineError
from gguf_serve.server.errors import ApiError, invalid, shown
from gguf_serve.server.http.fetch import Fetcher
from gguf_serve.server.http.room import Lease
from gguf_serve.server.interface import Engine, MediaReader

# What a client cannot write into a text: it would be taken for an image.
MARKER = f"<__media_{secrets.token_hex(8)}__>"
SHOWN_MARKER = "<__media__>"  # in prompts that are shown
KINDS = {"image_url": "image", "input_audio": "audio", "input_video": "video", "video_url": "video"}
BASE64_PIECE = 2**18  # letters
MAX_FETCHES = 4  # of a request at a time
# Few, since each may need a gigabyte for a moment.
DECODERS = ThreadPoolExecutor(2, thread_name_prefix="decode")
UNQUOTED_PIECE = 2**16  # letters; of each of which there may be an object for a moment
REMOTE = ("http://", "https://", "file://")
MAX_SCHEME = 32  # characters before a URL's colon, which base64 does not have
MAX_URL = 8192  # characters of one that is no data: URL
MAX_MEDIA_TYPE = 1024  # characters of a data: URL before its comma


class Source(Struct, frozen=True):
    """An image or a sound as the client gives it; ``name`` is the part's in its dialect."""

    name: str
    kind: str
    value: str


def sources(messages: list[dict[str, Any]]) -> Iterator[Source]:
    """The images and sounds of a conversation that has been checked, in order."""
    for place, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            for number, part in enumerate(content):
                if part["type"] in KINDS:
                    name = part.get("name") or f"messages[{place}].content[{number}]"
                    yield Source(name, part["type"], given(name, part))


def given(name: str, part: dict[str, Any]) -> str:
    """The URL or base64 of an image, a sound or a video; of the last two it may be called url or
    data."""
    value = part.get(part["type"])
    field, other = ("url", "data") if part["type"].endswith("_url") else ("data", "url")
    other = field if part["type"] == "image_url" else other
    if isinstance(value, dict) and field not in value and other in value:
        field = other
    found = value.get(field) if isinstance(value, dict) else value
    if not isinstance(found, str) or not found:
        raise invalid(
            f"Field '{name}.{part['type']}.{field}': expected a string, got {shown(found)}"
        )
    return found


def with_markers(messages: list[dict[str, Any]], marker: str = MARKER) -> list[dict[str, Any]]:
    """The messages with a text in place of each image and sound."""

    def marked(part: dict[str, Any]) -> dict[str, Any]:
        return {"type": "text", "text": marker} if part["type"] in KINDS else part

    return [
        {**message, "content": list(map(marked, content))}
        if isinstance(content := message.get("content"), list)
        else message
        for message in messages
    ]


async def read_media(messages: list[dict[str, Any]], engine: Engine, fetcher: Fetcher) -> list[Any]:
    """The decoded images and sounds, in order; opaque to the server."""
    found = list(sources(messages))
    if not found:
        return []
    reader = engine.media
    if reader is None:
        raise unsupported(found[0], KINDS[found[0].kind])
    media: list[Any] = []
    for at in range(0, len(found), MAX_FETCHES):
        batch = found[at : at + MAX_FETCHES]
        lease = Lease(fetcher.room)
        try:
            await take_room(batch, fetcher, lease)
            fetched = await asyncio.gather(*(fetch(source, fetcher) for source in batch))
            for source, data in zip(batch, fetched, strict=True):
                media.append(await decode(source, data, reader))
                check_room(media, engine.n_ctx)
        finally:
            lease.give_back()
    return media


async def take_room(batch: list[Source], fetcher: Fetcher, lease: Lease) -> None:
    """Wait for memory for what comes from elsewhere; the rest has come with the body."""
    n_remote = sum(source.value.startswith(REMOTE) for source in batch)
    if not n_remote:
        return
    try:
        await lease.take(n_remote * fetcher.max_bytes, fetcher.timeout)
    except TimeoutError:
        message = f"Other requests have all of the {fetcher.room.size} bytes for downloads"
        raise ApiError("unavailable_error", message, headers={"retry-after": "10"}) from None


async def read_source(source: Source, fetcher: Fetcher) -> bytes:
    """The bytes of one of them, which is not decoded here."""
    lease = Lease(fetcher.room)
    try:
        await take_room([source], fetcher, lease)
        return await fetch(source, fetcher)
    finally:
        lease.give_back()


def check_room(media: list[Any], n_ctx: int) -> None:
    """ContextOverflowError before the rest is decoded, with the tokens so far."""
    n_tokens = sum(medium.n_tokens for medium in media)
    if n_tokens >= n_ctx:
        raise ContextOverflowError(n_tokens, n_ctx)


def unsupported(source: Source, kind: str) -> ApiError:
    return invalid(
        f"Field '{source.name}': {kind} input is not supported - hint: if this is unexpected, you "
        "may need to provide the mmproj"
    )


async def fetch(source: Source, fetcher: Fetcher) -> bytes:
    """The bytes of an image or a sound, given as a URL or as base64."""
    try:
        if source.value.startswith("data:"):
            return await asyncio.to_thread(from_data_url, source.value)
        if ":" not in source.value[:MAX_SCHEME]:
            return await asyncio.to_thread(from_base64, source.value)
        if len(source.value) > MAX_URL:
            raise ValueError(f"the URL is longer than {MAX_URL} characters")
        if source.value.startswith("file://"):
            return await asyncio.to_thread(fetcher.read_file, unquote(source.value[7:]))
        if source.value.startswith(("http://", "https://")):
            return await fetcher.download(source.value)
    except ValueError as error:
        raise invalid(f"Field '{source.name}': {error}") from None
    raise invalid(
        f"Field '{source.name}': expected base64 or a URL that begins with data:, http:, https: or "
        f"file:, got {shown(source.value)}"
    )


def from_data_url(url: str) -> bytes:
    start = url.find(",", 0, MAX_MEDIA_TYPE)
    if start < 0:
        raise ValueError(
            f"the data URL has no comma in its first {MAX_MEDIA_TYPE} characters: {shown(url)}"
        )
    options = url[:start].lower().split(";")[1:]
    data = unquoted(url, start + 1)
    return from_base64(data.decode("latin-1")) if "base64" in options else data


def unquoted(text: str, start: int) -> bytes:
    """The bytes of a text with %XX from there on."""
    parts: list[bytes] = []
    while start < len(text):
        end = start + UNQUOTED_PIECE
        mark = text.rfind("%", end - 2, end)  # it stays with its digits
        end = mark if mark >= 0 and end < len(text) else end
        parts.append(unquote_to_bytes(text[start:end]))
        start = end
    return b"".join(parts)


def from_base64(text: str) -> bytes:
    """The bytes of a text, which may be broken into lines.

    In pieces, since no other thread runs while the library decodes one.
    """
    parts: list[bytes] = []
    rest = b""  # less than a group of four letters
    try:
        for start in range(0, len(text), BASE64_PIECE):
            letters = rest + text[start : start + BASE64_PIECE].encode("ascii")
            letters = letters.translate(None, string.whitespace.encode())
            whole, rest = letters[: len(letters) & -4], letters[len(letters) & -4 :]
            if whole and parts and len(parts[-1]) % 3:
                raise ValueError("there is more after its padding")
            if whole:
                parts.append(base64.b64decode(whole, validate=True))
        if rest:
            raise ValueError(f"its length is {len(rest)} more than a multiple of 4")
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the base64 cannot be read: {error}") from None
    return b"".join(parts)


READERS = {"image": "image", "audio": "sound", "video": "video"}  # methods of MediaReader


async def decode(source: Source, data: bytes, reader: MediaReader) -> Any:
    loop = asyncio.get_running_loop()
    try:
        read = getattr(reader, READERS[KINDS[source.kind]])
        return await loop.run_in_executor(DECODERS, read, data)
    except EngineError as error:
        raise invalid(f"Field '{source.name}': {error}") from None
