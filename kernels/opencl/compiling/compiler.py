"""Compiles programs in child processes, one per core, that end when there is nothing to do.

So the compiler's memory goes with it, and a crash of it is an error and not the end of the
server. Threads here only wait: for a child, or for another process that compiles the same.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from msgspec import Struct, field

from gguf_serve.kernels.opencl.compiling.features import reject
from gguf_serve.kernels.opencl.compiling.program_cache import ProgramCache
from gguf_serve.kernels.opencl.compiling.worker import (
    N_WORKERS,
    Worker,
    WorkerEndedError,
    end_spare_workers,
    take_worker,
)
from gguf_serve.kernels.opencl.platforms import DeviceError, DeviceInfo

FOREGROUND, BACKGROUND = 0, 1
N_THREADS = (N_WORKERS, 1)
IDLE_SECONDS = 5.0  # that a child waits for the next program
COMPILE_SECONDS = 600.0  # of one program; then the child is ended
LOCK_SECONDS = 600.0  # to wait for another process that compiles the same
POLL_SECONDS = 0.05


class BuildError(DeviceError):
    """A kernel does not compile on this device; the message carries the compiler's log.

    ``defines``: those of the program, if they may be the reason."""

    def __init__(
        self, message: str, info: DeviceInfo | None = None, defines: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self._info, self._defines = info, defines

    def reject(self) -> list[str]:
        """Have what a GPU was to multiply by in this program not be used again, so that loading
        may begin anew; which forms these are (features.py), none if it is not the reason."""
        return [] if self._info is None else reject(self._info, self._defines)


class Job(Struct, eq=False):
    """A program to compile: its key in the cache, its source and options, and its binary."""

    key: str
    name: str  # for people
    source: str
    options: Sequence[str]
    binary: Future[bytes] = field(default_factory=Future)
    waited_since: float | None = None  # for a lock that another process holds


class Compiler:
    """Turns jobs into binaries, from the cache or by children. Thread-safe."""

    def __init__(self, info: DeviceInfo, cache: ProgramCache) -> None:
        self._info, self._cache = info, cache
        self._queues: tuple[deque[Job], deque[Job]] = (deque(), deque())
        self._n_threads, self._n_idle = [0, 0], [0, 0]
        self._changed = threading.Condition()
        self._closing = False
        self._jobs: dict[str, Job] = {}
        self._workers: set[Worker] = set()
        self.n_compiled = 0

    def submit(self, jobs: Sequence[Job], priority: int = FOREGROUND) -> list[Future[bytes]]:
        """Their binaries, in the order of ``jobs``, which is the order of work. One that is
        already wanted is not compiled twice; in the foreground it comes before what is not."""
        with self._changed:
            self._closing = False
            return [self._enqueue(job, priority) for job in jobs]

    def end_workers(self) -> None:
        """End the children that have nothing to do now, and not only after some seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        end_spare_workers()

    def stop(self) -> None:
        """End all children; jobs that are not done fail."""
        with self._changed:
            self._closing = True
            left = [job for jobs in self._queues for job in jobs]
            for jobs in self._queues:
                jobs.clear()
            for job in left:
                del self._jobs[job.key]
            workers = list(self._workers)
            self._changed.notify_all()
        for job in left:
            job.binary.set_exception(BuildError(f"{job.name}: compiling has been stopped"))
        for worker in workers:
            worker.kill()
        end_spare_workers()

    def _enqueue(self, job: Job, priority: int) -> Future[bytes]:
        known = self._jobs.get(job.key)
        if known is None:
            self._jobs[job.key] = job
            self._queues[priority].append(job)
        elif priority == FOREGROUND and known in self._queues[BACKGROUND]:
            self._queues[BACKGROUND].remove(known)
            self._queues[FOREGROUND].append(known)
        else:
            return known.binary
        wanted = self._n_threads[priority] + len(self._queues[priority]) - self._n_idle[priority]
        if self._n_threads[priority] < min(wanted, N_THREADS[priority], os.cpu_count() or 1):
            self._n_threads[priority] += 1
            threading.Thread(
                target=self._work, args=[priority], name="compiler", daemon=True
            ).start()
        self._changed.notify_all()
        return self._jobs[job.key].binary

    def _work(self, priority: int) -> None:
        """A thread: takes jobs as long as there are any."""
        worker: Worker | None = None
        try:
            while True:
                with contextlib.ExitStack() as stack:
                    job = self._take(priority, stack)
                    if job is None:
                        return
                    if worker is not None and not worker.alive:
                        self._close(worker)
                        worker = None
                    worker = self._finish(job, worker, background=priority == BACKGROUND)
        finally:
            if worker is not None:
                self._close(worker)

    def _take(self, priority: int, stack: contextlib.ExitStack) -> Job | None:
        """The first job that no other process compiles, with its lock entered into ``stack``;
        None: there has been nothing to do, the thread is no longer counted."""
        jobs = self._queues[priority]
        idle_since = time.monotonic()
        with self._changed:
            while True:
                for job in jobs:
                    now = time.monotonic()
                    if job.waited_since is not None and now - job.waited_since > LOCK_SECONDS:
                        jobs.remove(job)
                        return job
                    lock = contextlib.ExitStack()
                    if lock.enter_context(self._cache.locked(job.key)):
                        stack.push(lock)
                        jobs.remove(job)
                        return job
                    lock.close()
                    job.waited_since = job.waited_since or now
                if jobs:
                    idle_since = time.monotonic()
                    self._changed.wait(POLL_SECONDS)
                    continue
                left = IDLE_SECONDS - (time.monotonic() - idle_since)
                if left <= 0 or self._closing:
                    self._n_threads[priority] -= 1
                    return None
                self._n_idle[priority] += 1
                self._changed.wait(left)
                self._n_idle[priority] -= 1

    def _finish(self, job: Job, worker: Worker | None, *, background: bool) -> Worker | None:
        """Give a job its binary or its error; the worker for the next one."""
        try:
            binary = self._cache.load(job.key)
            if binary is None:
                worker = worker or self._start(background=background)
                binary = self._compile(job, worker)
                self.n_compiled += 1
                self._cache.store(job.key, binary)
            job.binary.set_result(binary)
        except BaseException as error:
            job.binary.set_exception(error)
        with self._changed:
            self._jobs.pop(job.key, None)
        return worker

    def _compile(self, job: Job, worker: Worker) -> bytes:
        """Raises BuildError, after which the worker may have ended; NoWorkerError."""
        defines = [option[2:] for option in job.options if option.startswith("-D")]
        try:
            return worker.compile(job.source, job.options, COMPILE_SECONDS)
        except WorkerEndedError as error:
            message = f"{job.name}: the compiler has ended with {error}"
            raise BuildError(message, self._info, () if error.late else defines) from error
        except ValueError as error:
            raise BuildError(f"{job.name}: {error}", self._info, defines) from error

    def _start(self, *, background: bool) -> Worker:
        worker = take_worker(self._info, background=background)
        with self._changed:
            self._workers.add(worker)
        return worker

    def _close(self, worker: Worker) -> None:
        with self._changed:
            self._workers.discard(worker)
        worker.close()
