"""Running batches: their requests are answered by this server's own endpoints while nobody waits.

What has been answered stands in the batch's files (journal.py), so that a server that starts again
goes on with the rest. The lines of several batches take turns, one by one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from starlette.types import ASGIApp

from gguf_serve.server.account import account
from gguf_serve.server.batches.call import post
from gguf_serve.server.batches.journal import Journal
from gguf_serve.server.batches.lines import (
    InvalidFileError,
    Line,
    answer,
    fault,
    never_run,
    read_body,
    read_lines,
)
from gguf_serve.server.batches.objects import Batch, Status
from gguf_serve.server.batches.store import Store, StoreFullError
from gguf_serve.server.errors import invalid, plain_error
from gguf_serve.server.http.client import client, is_awaited, session
from gguf_serve.server.http.foreground import Foreground
from gguf_serve.server.interface import Engine

log = logging.getLogger(__name__)
REFUSED, UNAVAILABLE = 400, 503
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds until a request that found no room is tried again
LOOK_SECONDS = 1.0  # between two looks at whether the engine is back
NOT_IN_BATCHES = ("stream", "background")  # fields: whoever listens to them is not there


class Batches:
    """The batches of a store. Used by the event loop alone."""

    def __init__(self, store: Store, engine: Callable[[], Engine], foreground: Foreground) -> None:
        """``engine``: the one that is loaded now."""
        self.store = store
        self.app: ASGIApp | None = None  # the endpoints; before anything is started
        self._engine, self._foreground = engine, foreground
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turns: asyncio.Semaphore | None = None

    @property
    def n_running(self) -> int:
        return len(self._tasks)

    def start(self) -> None:
        """Go on with what is not finished, once there is a model; idempotent."""
        for batch in self.store.unfinished():
            if batch.id not in self._tasks:
                task = asyncio.create_task(self._run(batch))
                task.add_done_callback(partial(self._ended, batch.id))
                self._tasks[batch.id] = task

    def add(self, batch: Batch) -> None:
        self.store.add_batch(batch)
        self.start()

    def cancel(self, batch: Batch) -> None:
        """Have its requests end that run, and the others not begin. ApiError if it has ended."""
        if not batch.is_unfinished or batch.status == "finalizing":
            raise invalid(f"{batch.id} cannot be cancelled: its status is {batch.status}")
        if batch.status != "cancelling":
            batch.become("cancelling")
            self.store.save(batch)
            self._tasks[batch.id].cancel()

    def stop(self) -> None:
        """The server ends: what is not answered is left for the next start."""
        for task in self._tasks.values():
            task.cancel()

    def _ended(self, id: str, task: asyncio.Task[None]) -> None:
        del self._tasks[id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("batch %s stopped, and goes on when the server starts again", id,
                      exc_info=error)  # fmt: skip

    async def _run(self, batch: Batch) -> None:
        client.set(batch.owner)
        is_awaited.set(False)
        account.set(None)  # what it takes is in no line of the log
        try:
            if batch.status != "cancelling":
                self._end(batch, *await self._answer(batch))
                return
        except asyncio.CancelledError:
            if batch.status != "cancelling":
                raise
        self._end(batch, "cancelled")

    async def _answer(self, batch: Batch) -> tuple[Status, Any]:
        """Answer all that is not answered, while there is time. How it ended, and its errors."""
        try:
            place = self.store.place(batch.input_file_id)
            lines = await asyncio.to_thread(read_lines, place, batch.endpoint)
        except InvalidFileError as error:
            return "failed", error.errors
        except OSError as error:
            return "failed", failure("input_file", str(error))
        journal = await asyncio.to_thread(Journal, self.store, batch)
        try:
            batch.request_counts.total = len(lines)
            if batch.status == "validating":
                batch.become("in_progress")
                self.store.save(batch)
            left = [line for line in lines if line.custom_id not in journal.done]
            share = Share(batch, journal, left)
            await self._work(share)
            if share.failure:
                return "failed", failure("storage", share.failure)
            return ("expired" if share.is_late else "completed"), None
        finally:
            await asyncio.to_thread(journal.close)

    async def _work(self, share: Share) -> None:
        """Answer what is left, as many at a time as there are slots."""
        try:
            async with (
                asyncio.timeout(share.batch.expires_at - time.time()),
                asyncio.TaskGroup() as group,
            ):
                for _ in range(min(self._engine().n_slots, len(share.lines))):
                    group.create_task(self._take_turns(share))
        except TimeoutError:
            await asyncio.to_thread(share.give_up)

    async def _take_turns(self, share: Share) -> None:
        if self._turns is None:
            self._turns = asyncio.Semaphore(self._engine().n_slots)
        for line in share.left:
            async with self._turns:
                await self._foreground.wait_until_empty()
                status, body = await self._ask(share.batch, line)
            share.write(line, answer(line.custom_id, status, body), is_failed=status >= REFUSED)
            if share.failure:
                return

    async def _ask(self, batch: Batch, line: Line) -> tuple[int, bytes]:
        """What the endpoint says to a line. A server that is about to end leaves it undone."""
        fields = read_body(self.store.place(batch.input_file_id), line)
        for name in NOT_IN_BATCHES:
            if fields.get(name):
                error = invalid(f"Field '{name}': is not there in batches")
                return error.status, msgspec.json.encode(plain_error(error))
        assert self.app is not None, "the app comes before the model"
        body = msgspec.json.encode(fields)
        for pause in (*PAUSES, 0.0):
            session.set("")
            status, answered = await post(self.app, batch.endpoint, body)
            if status != UNAVAILABLE:
                break
            while not self._engine().healthy:  # until it is replaced, or until ``stop``
                await asyncio.sleep(LOOK_SECONDS)
            await asyncio.sleep(pause)
        return status, answered

    def _end(self, batch: Batch, end: Status, errors: Any = None) -> None:
        """Show its files, those that have lines, and say how it ended."""
        if end == "completed":
            batch.become("finalizing")
        batch.errors = errors
        batch.output_file_id = self._shown(batch, batch.output, "output")
        batch.error_file_id = self._shown(batch, batch.failures, "error")
        batch.become(end)
        self.store.save(batch)
        counts = batch.request_counts
        log.info("%s %s: %d of %d requests answered, %d failed",
                 batch.id, end, counts.completed, counts.total, counts.failed)  # fmt: skip

    def _shown(self, batch: Batch, id: str, kind: str) -> str | None:
        place = self.store.place(id)
        if not place.exists():
            return None
        if not place.stat().st_size:
            place.unlink()
            return None
        self.store.add_output(id, batch, f"{batch.id}_{kind}.jsonl")
        return id


class Share:
    """What one run of a batch has to do."""

    def __init__(self, batch: Batch, journal: Journal, lines: list[Line]) -> None:
        """``lines``: those that are not answered."""
        self.batch, self.journal, self.lines = batch, journal, lines
        self.left = iter(lines)  # those that nobody has begun
        self.failure = ""  # why nothing can be written any more
        self.is_late = False

    def give_up(self) -> None:
        """There is no time for what is left."""
        self.is_late = True
        for line in self.lines:
            if line.custom_id not in self.journal.done:
                self.write(line, never_run(line.custom_id), is_failed=True)

    def write(self, line: Line, written: bytes, *, is_failed: bool) -> None:
        if self.failure:
            return
        try:
            self.journal.write(line.custom_id, written, is_failed=is_failed)
        except (StoreFullError, OSError) as error:
            self.failure = str(error)


def failure(code: str, message: str) -> Any:
    return {"object": "list", "data": [fault(code, message)]}
