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

from gguf_serve.server.dialects.responses.background import Run
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
    run: Run | None = None  # of a response in the background
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

    def __init__(self, n_bytes: int) -> None:
        """``n_bytes``: at most, of JSON; 0: nothing is kept."""
        self.most = n_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def keep(self, kept: Kept) -> None:
        """Keep it, or what has become of it."""
        n_bytes = size(kept)
        with self._lock:
            self._forget(kept.id)
            kept.n_bytes = n_bytes
            self._kept[kept.id] = kept
            self._n_bytes += n_bytes
            for other in list(self._kept.values()):
                if self._n_bytes <= self.most:
                    break
                if not other.is_running:
                    self._forget(other.id)

    def find(self, field: str, id: Any, is_response: bool = True) -> Kept:
        """ApiError if it is not there, or another client's. ``field``: "id" in a path."""
        with self._lock:
            kept = self._kept.get(id) if isinstance(id, str) else None
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
            return kept

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
        kept = self._kept.pop(id, None)
        if kept is not None:
            self._n_bytes -= kept.n_bytes


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
