"""What is kept of responses and conversations, for those who made them, within some memory.

The oldest that nobody has asked for goes when there is no room; what still runs stays.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gguf_serve.server.dialects.responses.background import Background
from gguf_serve.server.dialects.responses.files import ResponseFiles
from gguf_serve.server.errors import ApiError, invalid, shown
from gguf_serve.server.http.client import client
from gguf_serve.server.requests.answer import random_id

Items = tuple[Mapping[str, Any], ...]
MAX_RUNNING = 64  # responses in the background: what has ended can go to make room, they cannot


class Kept(msgspec.Struct):
    """A conversation; with ``response`` what it was before and with that."""

    id: str
    items: Items  # of the input, and with a conversation of all its turns
    response: dict[str, Any] | None = None
    run: Background | None = None  # of a response in the background
    metadata: Mapping[str, Any] = msgspec.field(default_factory=dict)
    created_at: int = msgspec.field(default_factory=lambda: int(time.time()))
    owner: str = msgspec.field(default_factory=client.get)
    n_bytes: int = 0

    @property
    def is_running(self) -> bool:
        return self.run is not None and self.run.is_running

    @property
    def history(self) -> Items:
        """What the next turn goes on from."""
        return (*self.items, *(self.response["output"] if self.response else ()))


class Memory:
    """Used by the event loop, and by threads that put answers together."""

    def __init__(self, n_bytes: int, files: ResponseFiles | None = None) -> None:
        """``n_bytes``: at most, of JSON; 0: nothing is kept. ``files``: where it is kept too."""
        self.most = n_bytes
        self._files = files if n_bytes else None
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.RLock()
        # What earlier servers have kept; a thread reads it, since it may take a second.
        self._loading = threading.Thread(target=self._load, name="responses", daemon=True)
        if self._files is not None:
            self._loading.start()

    def keep(self, kept: Kept) -> None:
        """Keep it, or what has become of it."""
        self._take(kept)
        if self._files is not None and not kept.is_running and self.has(kept):
            self._files.write(kept.id, saved(kept))

    def _take(self, kept: Kept) -> None:
        n_bytes = size(kept)
        with self._lock:
            self._drop(kept.id)
            kept.n_bytes = n_bytes
            self._kept[kept.id] = kept
            self._n_bytes += n_bytes
            for other in list(self._kept.values()):
                if self._n_bytes <= self.most:
                    break
                if not other.is_running:
                    self._forget(other.id)

    def _load(self) -> None:
        assert self._files is not None
        for content in self._files.load():
            kept = read(content)
            with self._lock:
                if kept.id not in self._kept:
                    self._take(kept)

    def find(self, field: str, id: Any, is_response: bool = True) -> Kept:
        """ApiError if it is not there, or another client's. ``field``: "id" in a path."""
        kept = self._at(id) if isinstance(id, str) else None
        with self._lock:
            if (
                kept is None
                or kept.owner != client.get()
                or is_response != (kept.id.startswith("resp_"))
            ):
                what = "response" if is_response else "conversation"
                message = f"there is no {what} {shown(id)} here (any more)"
                if field == "id":
                    raise ApiError("not_found_error", message)
                raise invalid(f"Field '{field}': {message}")
            self._kept.move_to_end(kept.id)
            if self._files is not None:
                self._files.touch(kept.id)
            return kept

    def item(self, id: str) -> Mapping[str, Any] | None:
        """The item of that id in what the client has kept, the newest first."""
        if self._files is not None:
            self._loading.join()
        with self._lock:
            mine = [kept for kept in self._kept.values() if kept.owner == client.get()]
        items = (item for kept in reversed(mine) for item in kept.history)
        return next((item for item in items if item.get("id") == id), None)

    def _at(self, id: str) -> Kept | None:
        """One that is in memory, or that another server of the same folder has kept."""
        kept = self._kept.get(id)
        if kept is not None or self._files is None:
            return kept
        self._loading.join()
        content = self._files.read(id)
        if content is not None and id not in self._kept:
            self._take(read(content))
        return self._kept.get(id)

    def has(self, kept: Kept) -> bool:
        return kept.id in self._kept

    def forget(self, kept: Kept) -> None:
        with self._lock:
            self._forget(kept.id)

    def check_room_for_run(self) -> None:
        with self._lock:
            n_running = sum(kept.is_running for kept in self._kept.values())
        if n_running >= MAX_RUNNING:
            message = f"{n_running} responses run in the background, no more may"
            raise ApiError("unavailable_error", message, headers={"retry-after": "10"})

    def _forget(self, id: str) -> None:
        self._drop(id)
        if self._files is not None:
            self._files.remove(id)

    def _drop(self, id: str) -> None:
        kept = self._kept.pop(id, None)
        if kept is not None:
            self._n_bytes -= kept.n_bytes


SAVED = ("id", "owner", "created_at", "items", "response", "metadata")  # all but a run


def saved(kept: Kept) -> bytes:
    """What a file has of it."""
    return msgspec.json.encode({name: getattr(kept, name) for name in SAVED})


def read(content: bytes) -> Kept:
    """What ``saved`` has written."""
    found = msgspec.json.decode(content)
    return Kept(**{name: found[name] for name in SAVED} | {"items": tuple(found["items"])})


def size(kept: Kept) -> int:
    n_bytes = len(msgspec.json.encode([kept.items, kept.response, kept.metadata]))
    return n_bytes + (kept.run.n_bytes if kept.run is not None else 0)


def with_ids(items: str | Sequence[Mapping[str, Any]]) -> Items:
    """The items of an input, each with an id under which it is listed."""
    if isinstance(items, str):
        content = [{"type": "input_text", "text": items}]
        items = [{"type": "message", "role": "user", "content": content}]
    return tuple(
        item if isinstance(item.get("id"), str) else {**item, "id": random_id("item_")}
        for item in items
    )
