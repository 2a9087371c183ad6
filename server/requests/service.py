"""What the endpoints share: the engine once it is there, its name, the defaults."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from msgspec import Struct
from starlette.requests import Request as HttpRequest

from gguf_serve.engine.request import Pooling
from gguf_serve.server.account import account
from gguf_serve.server.batches.runner import Batches
from gguf_serve.server.batches.store import Store
from gguf_serve.server.batches.yielding import Yielding
from gguf_serve.server.errors import LOADING, ApiError, invalid
from gguf_serve.server.http.body import read_json, read_object
from gguf_serve.server.http.client import client, is_awaited, note_session
from gguf_serve.server.http.content_encoding import coding, decoded
from gguf_serve.server.http.fetch import Fetcher
from gguf_serve.server.http.foreground import Foreground
from gguf_serve.server.http.form import read_form
from gguf_serve.server.http.room import LEASE, Room
from gguf_serve.server.http.stream import DEFAULT_MAX_UNREAD, EventStream, Inbox
from gguf_serve.server.http.traffic import Traffic
from gguf_serve.server.interface import Engine
from gguf_serve.server.kept.streams import KeptStreams
from gguf_serve.server.options.request_defaults import Defaults
from gguf_serve.server.requests.unknown import KNOWN, UnknownFields
from gguf_serve.server.requests.workers import Workers
from gguf_serve.server.tools.toolbox import Toolbox

T = TypeVar("T")
# What a request calls the model: behind a colon it may have the name of an adapter.
asked_model: ContextVar[str] = ContextVar("asked_model", default="")
DEFAULT_MAX_BODY = 64 * 2**20  # bytes
SMALL_BODY = 2**16  # bytes; so many are read of any request before anybody asks for its body
SLOW_BODY = 2**18  # bytes that must arrive within the body's timeout
MOST_INFLATED = 1032  # times the length of what is compressed by deflate
LARGE_BODY = 2**20  # bytes; to decode more takes so long that the event loop goes on meanwhile
DEFAULT_MAX_BODIES = 128 * 2**20  # bytes
LONG_TEXT = 2**18  # characters; to tokenize more takes seconds, so one waits for another
DEFAULT_TIMEOUT = 3600.0  # seconds
DEFAULT_BODY_TIMEOUT = 60.0  # seconds
DEFAULT_RESPONSE_MEMORY = 64 * 2**20  # bytes
DEFAULT_PING_INTERVAL = 30.0  # seconds


class Endpoints(Struct, frozen=True):
    """Which of the endpoints are there that an option turns on or off."""

    slots: bool = True
    props: bool = False
    metrics: bool = False
    slot_save_path: str | None = None
    lora_folder: Path | None = None  # of adapters that may be loaded at run time


class Service:
    def __init__(
        self,
        engine: Engine | None = None,
        *,
        defaults: Defaults | None = None,
        aliases: Iterable[str] = (),
        tags: Iterable[str] = (),
        ping_interval: float = DEFAULT_PING_INTERVAL,
        max_body: int = DEFAULT_MAX_BODY,
        max_bodies: int = DEFAULT_MAX_BODIES,
        max_unread: int = DEFAULT_MAX_UNREAD,
        timeout: float = DEFAULT_TIMEOUT,
        body_timeout: float = DEFAULT_BODY_TIMEOUT,
        endpoints: Endpoints | None = None,
        pooling: Pooling | None = None,
        embd_normalize: int = 2,
        fetcher: Fetcher | None = None,
        page: bool | Path = True,
        isolates: bool = False,
        verbose: bool = False,
        only_vectors: bool = False,
        response_memory: int = DEFAULT_RESPONSE_MEMORY,
        response_folder: Path | None = None,
        tools: Toolbox | None = None,
        batch_store: Store | None = None,
        voices: Mapping[str, bytes] | None = None,
        language: str = "",
    ) -> None:
        """``page``: whether there is a chat page at ``/``, or the folder that is there instead;
        ``isolates``: keys share no cached prefixes; ``verbose``: answers have ``__verbose``;
        ``only_vectors``: no text is generated; ``response_memory``: bytes for what is kept of
        responses, and ``response_folder``: where it outlives the server; ``tools``: what the server
        runs itself; ``batch_store``: where files and batches are, if there are any; ``voices``:
        sounds of those who speak, by name, and ``language``: what they speak unless asked, "" for
        the model's own choice."""
        self.loaded_engine = engine  # None while the model loads
        self.is_sleeping = False  # then it is a closed one
        self.is_draining = False  # nothing new is taken
        self.defaults = defaults or Defaults()
        self.aliases = sorted(aliases)
        self.tags = list(tags)
        self.ping_interval = ping_interval
        self.max_body = max_body
        self.bodies = Room(max(max_bodies, max_body))
        self.max_unread = max_unread
        self.timeout = timeout
        self.body_timeout = body_timeout
        self.embd_normalize = embd_normalize
        self._pooling = pooling  # None: the model's
        self.endpoints = endpoints or Endpoints()
        self.fetcher = fetcher or Fetcher()
        self.page = page
        self._isolates = isolates
        self.verbose = verbose
        self.only_vectors = only_vectors
        self.response_memory, self.response_folder = response_memory, response_folder
        self.tools = Toolbox() if tools is None else tools
        self.voices, self.language = voices or {}, language
        self.traffic = Traffic()
        self.foreground = Foreground()
        self._yielding = Yielding(lambda: self.engine, self.foreground)
        self.batches = (
            None
            if batch_store is None
            else Batches(batch_store, lambda: self.engine, self.foreground)
        )
        self.kept_streams = KeptStreams(response_memory, timeout, lambda: self.traffic.by_key)
        self.n_in_background = 0  # answers that are written with no connection
        self.keep_alive = -1.0  # seconds that the model stays without requests; -1: for ever
        self.created = int(time.time())
        # Streams by the id of their answer, for as long as it is written.
        self.controlled: WeakValueDictionary[str, EventStream] = WeakValueDictionary()
        # The last one of each editor that asked for what stands between two texts.
        self.infills: WeakValueDictionary[tuple[str, str], EventStream] = WeakValueDictionary()
        self._unknown = UnknownFields()
        self._inbox: Inbox | None = None
        self._long_texts = Workers(1, "text")

    @property
    def engine(self) -> Engine:
        if self.loaded_engine is None:
            raise ApiError("unavailable_error", LOADING)
        return self.loaded_engine

    @property
    def modalities(self) -> dict[str, bool]:
        """What a conversation may have beside text."""
        media = self.engine.media
        return {
            "vision": media is not None and media.vision,
            "video": media is not None and media.vision,
            "audio": media is not None and media.audio,
        }

    @property
    def model_name(self) -> str:
        """Never what a request calls it: the first alias, or the name of the file."""
        return self.aliases[0] if self.aliases else os.path.basename(str(self.engine.info.path))

    @property
    def pooling(self) -> Pooling:
        return self._pooling or self.engine.info.pooling

    @property
    def works_alone(self) -> bool:
        """Whether answers are written with no connection."""
        n_batched = 0 if self.batches is None else self.batches.n_running
        return bool(self.n_in_background or self.kept_streams.n_running or n_batched)

    def event_stream(self) -> EventStream:
        loop = asyncio.get_running_loop()
        if self._inbox is None or self._inbox.loop is not loop:
            self._inbox = Inbox(loop)
        if not is_awaited.get():
            return EventStream(
                self._yielding, self._inbox, self.max_unread, client.get(), isolates=self._isolates
            )
        return EventStream(
            self.engine, self._inbox, self.max_unread, client.get(), account.get(),
            self._isolates, self.traffic, self.foreground,
        )  # fmt: skip

    async def read_text(self, n_characters: int, read: Callable[..., T], *args: Any) -> T:
        """The result of ``read``, from a thread. Long texts are read one after the other, so that
        threads, and memory, are left for the others."""
        if n_characters < LONG_TEXT:
            return await asyncio.to_thread(read, *args)
        return await self._long_texts.run(read, *args)

    async def read_object(self, request: HttpRequest) -> dict[str, Any]:
        """The fields of a request's JSON body; ApiError says what is wrong with it."""
        return self._noted(request, await self._decoded(request, read_object))

    async def read_form(self, request: HttpRequest) -> dict[str, Any]:
        """The fields of a request's body that is a form; ApiError says what is wrong with it."""
        return self._noted(request, await read_form(request, self.read_body))

    def _noted(self, request: HttpRequest, fields: dict[str, Any]) -> dict[str, Any]:
        named = fields.get("model")
        asked_model.set(named if isinstance(named, str) else "")
        note_session(fields)
        known = request.scope.get(KNOWN)
        if known is not None:
            self.note_unknown(request, fields, known)
        return fields

    def note_unknown(
        self, request: HttpRequest, names: Iterable[str], known: frozenset[str]
    ) -> None:
        """Warn of fields that are not known, once in the life of the server."""
        self._unknown.note(request.scope["path"], names, known)

    async def read_list(self, request: HttpRequest) -> list[Any]:
        """The items of a body that is an array."""
        items = await self._decoded(request, read_json)
        if not isinstance(items, list):
            raise invalid("The request body must be a JSON array")
        return items

    async def _decoded(self, request: HttpRequest, decode: Callable[[bytes], T]) -> T:
        raw = await self.read_body(request)
        return decode(raw) if len(raw) < LARGE_BODY else await asyncio.to_thread(decode, raw)

    async def read_body(self, request: HttpRequest) -> bytes:
        """All of the body, decompressed; ApiError 413 as soon as it is known to be too long."""
        compression = coding(request.headers.get("content-encoding", ""))
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.max_body:
            raise self._too_long()
        await self._take_room(request, int(length) if length.isdecimal() else None, compression)
        body = await self._received(request)
        if compression is None:
            return body
        whole = await asyncio.to_thread(decoded, body, compression, self.max_body)
        if whole is None:
            raise self._too_long()
        return whole

    async def _take_room(
        self, request: HttpRequest, length: int | None, compression: str | None
    ) -> None:
        """Wait for memory for a body, in which it is kept until the request is under way."""
        factor = 1 if compression is None else MOST_INFLATED
        n_bytes = self.max_body if length is None else min(length * factor, self.max_body)
        if n_bytes <= SMALL_BODY:
            return
        try:
            await request.scope[LEASE].take(n_bytes, self.body_timeout)
        except TimeoutError:
            size = self.bodies.size
            message = f"Other requests have all of the {size} bytes for bodies (--max-bodies)"
            raise ApiError("unavailable_error", message, headers={"retry-after": "10"}) from None

    async def _received(self, request: HttpRequest) -> bytes:
        loop = asyncio.get_running_loop()
        chunks: list[bytes] = []
        n_bytes, enough = 0, SLOW_BODY
        seconds = min(self.body_timeout, self.timeout)
        last = loop.time() + self.timeout
        try:
            async with asyncio.timeout(seconds) as deadline:
                async for chunk in request.stream():
                    n_bytes += len(chunk)
                    if n_bytes > self.max_body:
                        raise self._too_long()
                    chunks.append(chunk)
                    if n_bytes >= enough:
                        enough = n_bytes + SLOW_BODY
                        deadline.reschedule(min(loop.time() + seconds, last))
        except TimeoutError:
            message = (
                f"The request body stopped after {n_bytes} bytes: expected {SLOW_BODY} more or its "
                f"end within {seconds:g} seconds (--body-timeout)"
            )
            raise ApiError("timeout_error", message) from None
        return b"".join(chunks)

    def _too_long(self) -> ApiError:
        message = f"The request body is longer than {self.max_body} bytes"
        return ApiError("payload_too_large_error", message)


def timestamp(seconds: float) -> str:
    """RFC 3339, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
