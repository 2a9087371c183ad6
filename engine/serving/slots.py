"""What is done about slots while they serve nobody: saved to files, restored from them, erased.

What takes long, the disk and the checksum of a gigabyte, is done in a thread of the operation;
the engine's thread only copies pages from the device or to it, between two steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from gguf_serve.engine.completion.stream import Stream
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.forward.slot_cache import SlotCache
from gguf_serve.engine.forward.slot_file import read_slot_file, write_slot_file
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.serving.mailbox import Mailbox, SlotTask
from gguf_serve.engine.stats import SlotFile, SlotState, slot_states

T = TypeVar("T")


class Slots:
    """The slots of an engine, with what each has served last."""

    def __init__(self, cache: SlotCache, scheduler: Scheduler, mailbox: Mailbox) -> None:
        self._cache, self._scheduler, self._mailbox = cache, scheduler, mailbox
        self._latest: list[Stream | None] = [None for _ in scheduler.slots]
        self._tasks: list[SlotTask] = []  # the engine's, whose slots are not idle yet
        # A slot's operations come one after another, and one uses the disk: so no more contents
        # than slots are in memory, and each is done sooner.
        self._turns = [threading.Lock() for _ in scheduler.slots]
        self._disk = threading.Lock()

    # From any thread

    def states(self) -> list[SlotState]:
        return slot_states(self._scheduler, self._latest)

    def save(self, slot: int, path: Path) -> Future[SlotFile]:
        return self._begin(slot, lambda: self._save(slot, path))

    def restore(self, slot: int, path: Path) -> Future[SlotFile]:
        return self._begin(slot, lambda: self._restore(slot, path))

    def erase(self, slot: int) -> Future[int]:
        self._check(slot)
        return self._when_idle(slot, lambda: self._cache.erase(slot))

    def _check(self, slot: int) -> None:
        if not 0 <= slot < len(self._latest):
            raise RequestError(f"there is no slot {slot}, only 0 to {len(self._latest) - 1}")

    def _begin(self, slot: int, operation: Callable[[], SlotFile]) -> Future[SlotFile]:
        def in_turn() -> SlotFile:
            with self._turns[slot]:
                return operation()

        self._check(slot)
        self._mailbox.check_open()
        task = SlotTask(in_turn, slot=slot)
        # A daemon: a disk that hangs must not keep the process alive.
        threading.Thread(target=task.run, name="slot file", daemon=True).start()
        return task.future

    def _save(self, slot: int, path: Path) -> SlotFile:
        began, content = self._when_idle(
            slot, lambda: (time.perf_counter(), self._cache.content(slot))
        ).result()
        with self._disk:
            n_bytes = write_slot_file(path, self._cache.made_with, content, self._cache.draft)
        return SlotFile(len(content.tokens), n_bytes, time.perf_counter() - began)

    def _restore(self, slot: int, path: Path) -> SlotFile:
        cache = self._cache
        with self._disk:
            began = time.perf_counter()
            content, n_bytes = read_slot_file(path, cache.made_with, cache.page_bytes, cache.draft)
        self._when_idle(slot, lambda: cache.put(slot, content, path.name)).result()
        return SlotFile(len(content.tokens), n_bytes, time.perf_counter() - began)

    def _when_idle(self, slot: int, action: Callable[[], T]) -> Future[T]:
        """What the engine's thread makes of something once the slot serves nobody."""
        task = SlotTask(action, slot=slot)
        self._mailbox.post(task)
        return task.future

    def release(self) -> None:
        """Once nothing more is done: let the device's memory go. The states stay."""
        del self._cache

    # In the engine's thread

    def begin(self, stream: Stream) -> None:
        """A slot serves this from now on; the slot's content grows with its tokens."""
        seq = stream.seq
        self._latest[seq.slot] = stream
        self._cache.note(seq.slot, seq.tokens, seq.salt)

    def add(self, task: SlotTask) -> None:
        self._tasks.append(task)

    @property
    def has_tasks(self) -> bool:
        return bool(self._tasks)

    def run_tasks(self) -> None:
        """Do what is to be done about slots that are idle now."""
        idle = [task for task in self._tasks if self._scheduler.slots[task.slot] is None]
        self._tasks = [task for task in self._tasks if task not in idle]
        for task in idle:
            task.run()

    def end(self, error: Exception) -> None:
        """Nothing more will be done."""
        for task in self._tasks:
            task.fail(error)
