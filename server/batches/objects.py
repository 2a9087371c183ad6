"""Files and batches as they are kept: OpenAI's objects, with what clients do not see."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct, field, structs

Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling",
    "cancelled",
]  # fmt: skip
UNFINISHED = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
WINDOW = 24 * 3600  # seconds, of a completion window of 24h
HIDDEN = ("owner", "output", "failures", "output_seconds")


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(16)


def now() -> int:
    """Unix time, in seconds."""
    return int(time.time())


class StoredFile(Struct):
    id: str
    bytes: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    owner: str  # the client that made it
    created_at: int = field(default_factory=now)
    expires_at: int | None = None
    object: Literal["file"] = "file"
    status: Literal["processed"] = "processed"


class Counts(Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Usage(Struct):
    """Tokens of all answers, as OpenAI's batches have them."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def add(self, usage: Mapping[str, Any]) -> None:
        """``usage``: of a completion, a response or embeddings."""
        asked = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        written = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
        self.input_tokens += usage.get("prompt_tokens", usage.get("input_tokens", 0))
        self.output_tokens += usage.get("completion_tokens", usage.get("output_tokens", 0))
        self.cached_tokens += asked.get("cached_tokens", 0)
        self.reasoning_tokens += written.get("reasoning_tokens", 0)

    def shown(self) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.input_tokens + self.output_tokens,
        }


class Batch(Struct):
    """``output`` and ``failures`` are the files' ids while it runs; clients see those that have
    lines when it has ended."""

    endpoint: str
    input_file_id: str
    model: str
    owner: str  # the client that made it
    metadata: dict[str, str] | None = None
    output_seconds: int | None = None  # for which its files stay; None: as long as all others
    id: str = field(default_factory=lambda: new_id("batch_"))
    output: str = field(default_factory=lambda: new_id("file-"))
    failures: str = field(default_factory=lambda: new_id("file-"))
    object: Literal["batch"] = "batch"
    completion_window: str = "24h"
    status: Status = "validating"
    errors: dict[str, Any] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int = field(default_factory=now)
    in_progress_at: int | None = None
    expires_at: int = field(default_factory=lambda: now() + WINDOW)
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = field(default_factory=Counts)
    usage: Usage = field(default_factory=Usage)

    @property
    def is_unfinished(self) -> bool:
        return self.status in UNFINISHED

    def become(self, status: Status) -> None:
        self.status = status
        setattr(self, f"{status}_at", now())


def shown(kept: StoredFile | Batch) -> dict[str, Any]:
    """What clients see of it."""
    found = {name: value for name, value in structs.asdict(kept).items() if name not in HIDDEN}
    if isinstance(kept, Batch):
        found["usage"] = kept.usage.shown()
    return found
