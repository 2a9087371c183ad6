"""Prefixes on their way from the folder: for one request after the other, while others go on.

A thread finds out how far a prompt is on the disk and reads it, if that is faster than to compute
it; the engine's thread puts the pages into the cache, some between two steps. The request is let
into the scheduler's slots when all are there, and finds them like any others.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items

import numpy as np
from msgspec import Struct, field

from gguf_serve.engine.disk_cache.host_pages import PageStore
from gguf_serve.engine.disk_cache.names import PageName
from gguf_serve.engine.disk_cache.page_file import Kind
from gguf_serve.engine.disk_cache.rate import Rate
from gguf_serve.engine.disk_cache.worker import Worker
from gguf_serve.engine.forward.cached_bytes import Bytes, CachedBytes
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Sequence
from gguf_serve.engine.serving.disk_names import DiskNames

MOST_BYTES = 64 << 20  # of pages that are read and not yet in the cache
MOST_PAGES = 256  # of them
PIECES = 8  # pages that are put into the cache at once
LEAST_TOKENS = 128  # fewer are computed as soon as somebody has looked for them


class Loaded(Struct):
    """What has been loaded since the start."""

    n_tokens: int = 0
    seconds: float = 0.0


class _Load(Struct, eq=False):
    """A sequence that waits. Threads set ``is_looked`` and ``is_read`` last."""

    seq: Sequence
    tokens: Items[int]  # in full pages
    names: Items[PageName] = ()
    end: int = 0  # pages that the cache could have with the folder's
    draft_end: int = 0  # of these, which a model that guesses has there
    is_looked: bool = False
    n_cached: int = 0  # tokens that it could begin after already
    first: int = 0  # the first page that is not in memory
    ready: deque[tuple[Kind, int, memoryview]] = field(default_factory=deque)
    is_read: bool = False
    is_given_up: bool = False  # the rest is of no use
    began: float = 0.0  # when reading did


class DiskLoads:
    """Who waits for what. In the engine's thread; ``wake`` is called from others."""

    def __init__(
        self,
        store: PageStore,
        names: DiskNames,
        scheduler: Scheduler,
        cached: CachedBytes,
        speed: Callable[[], float],
        wake: Callable[[], None],
        loaded: Loaded,
    ) -> None:
        """``speed``: tokens of prompts that are computed in a second; 0: not known."""
        self._store, self._names, self._cached = store, names, cached
        self._scheduler, self._speed, self._wake = scheduler, speed, wake
        self._size = scheduler.cache.page_size
        self._looked_for: deque[_Load] = deque()
        self._waiting: deque[_Load] = deque()  # for their turn to be read
        self._load: _Load | None = None
        self._rate, self._loaded = Rate(), loaded
        most = min(MOST_BYTES // max(cached.page_bytes, 1), MOST_PAGES)
        self._room = threading.Semaphore(max(most, 1))  # pages that the thread may read
        # Who finds nothing does not wait for what others read.
        self._looking, self._reading = Worker("disk cache look-up"), Worker("disk cache reader")

    def offer(self, seq: Sequence) -> None:
        """A request has come: it may wait for what it can begin with."""
        n = (len(seq.tokens) - 1) // self._size * self._size
        load = _Load(seq, seq.tokens[:n])
        if seq.share and not seq.n_encoder and n - self._find(load) >= LEAST_TOKENS:
            seq.is_loading = True
            self._looked_for.append(load)
            self._looking.do(lambda: self._look(load))

    @property
    def n_waiting(self) -> int:
        """Sequences that wait."""
        return len(self._looked_for) + len(self._waiting) + (self._load is not None)

    @property
    def has_work(self) -> bool:
        """Whether there is something to be done at once."""
        if self._looked_for and self._looked_for[0].is_looked:
            return True
        load = self._load
        return bool(self._waiting) if load is None else bool(load.ready) or load.is_read

    def work(self, seconds: float) -> None:
        """Do what can be done, for about so long."""
        end = time.perf_counter() + seconds
        while self.has_work:
            if self._looked_for and self._looked_for[0].is_looked:
                self._sort(self._looked_for.popleft())
            elif self._load is None:
                self._begin(self._waiting.popleft())
            elif self._load.ready:
                self._put(self._load)
            else:
                self._finish(self._load)
            if time.perf_counter() >= end:
                return

    def close(self, seconds: float) -> None:
        """Nobody waits any more."""
        if self._load is not None:
            self._load.is_given_up = True
        self._room.release(MOST_PAGES)
        for worker in (self._looking, self._reading):
            worker.close(seconds)

    def _find(self, load: _Load) -> int:
        """Note what of it is in memory now, and how much it could begin after."""
        cache, checkpoints = self._scheduler.cache, self._scheduler.checkpoints
        n_here = cache.find_pages(load.tokens, load.seq.salt)[1]
        load.first, load.n_cached = n_here // self._size, n_here
        if checkpoints is not None:
            found = checkpoints.find(load.tokens, load.seq.salt, n_here)
            load.n_cached = found.position if found else 0
        return load.n_cached

    # In a thread

    def _look(self, load: _Load) -> None:
        """Find out how much there is."""
        try:
            load.names = self._names.of(load.seq, load.tokens)
            end = load.first
            while end < len(load.names) and self._store.has(load.names[end], Kind.KV):
                end += 1
            if self._scheduler.checkpoints is not None:
                while end > 0 and not self._store.has(load.names[end - 1], Kind.STATE):
                    end -= 1
            load.end = load.draft_end = end
            for i in range(load.first, end if self._cached.beside else load.first):
                if not self._store.has(*self._names.file(load.names[i], Kind.DRAFT)):
                    load.draft_end = i
                    break
        finally:
            load.is_looked = True
            self._wake()

    def _read(self, load: _Load) -> None:
        """Read it, in pieces that the engine's thread takes."""
        try:
            load.began = time.perf_counter()
            for kind, i, n_bytes in self._pieces(load):
                self._room.acquire()
                file = self._names.file(load.names[i], kind)
                data = None if load.is_given_up else self._store.read(*file, n_bytes)
                if data is None:
                    self._room.release()
                    if kind is Kind.DRAFT:
                        continue
                    load.end = 0
                    return
                load.ready.append((kind, i, data))
                self._wake()
            names = load.names[: load.end]
            for name, stamp in zip(names, self._store.stamps(load.end), strict=True):
                for kind in Kind:
                    self._store.touch(*self._names.file(name, kind), stamp)
        finally:
            load.is_read = True
            self._wake()

    def _pieces(self, load: _Load) -> Items[tuple[Kind, int, int]]:
        """What is to be read: kinds, pages, bytes."""
        pages = [(Kind.KV, i, self._cached.page_bytes) for i in range(load.first, load.end)]
        if self._cached.beside is not None:
            n_bytes = self._cached.beside_bytes
            pages += [(Kind.DRAFT, i, n_bytes) for i in range(load.first, load.draft_end)]
        if self._scheduler.checkpoints is None:
            return pages
        state_bytes = self._cached.state_bytes_at(load.end * self._size)
        return [*pages, (Kind.STATE, load.end - 1, state_bytes)]

    # In the engine's thread

    def _sort(self, load: _Load) -> None:
        """One that has been looked for has its turn to be read, or goes on at once."""
        if load.end * self._size - load.n_cached >= LEAST_TOKENS:
            self._waiting.append(load)
        else:
            load.seq.is_loading = False

    def _begin(self, load: _Load) -> None:
        """Others may have computed or loaded it meanwhile, or nobody may want it any more."""
        gain = load.end * self._size - self._find(load)
        n_bytes = sum(n for _, _, n in self._pieces(load))
        is_wanted = gain >= LEAST_TOKENS and load.seq.state != "finished"
        if is_wanted and self._rate.is_worth(n_bytes, gain, self._speed()):
            self._load = load
            self._reading.do(lambda: self._read(load))
        else:
            load.seq.is_loading = False

    def _put(self, load: _Load) -> None:
        """Take pages, or a state, into the cache."""
        kind, first, _ = load.ready[0]
        pieces = list[memoryview]()
        while (
            load.ready
            and load.ready[0][:2] == (kind, first + len(pieces))
            and (len(pieces) < PIECES)
        ):
            pieces.append(load.ready.popleft()[2])
            self._room.release()
        if load.seq.state == "finished":
            load.is_given_up = True
        if load.is_given_up:
            return
        arrays = [np.frombuffer(piece, np.uint8) for piece in pieces]
        end = (first + len(pieces)) * self._size
        tokens, salt = load.tokens[:end], load.seq.salt
        if kind is Kind.STATE:
            self._cached.write_state(tokens, salt, end, arrays[0])
            return
        if kind is Kind.DRAFT:
            self._put_beside(self._scheduler.cache.find_pages(tokens, salt)[0][first:], arrays)
            return
        spare = len(self._scheduler.running)
        n_there, pages = self._scheduler.cache.insert(tokens, salt, first, spare)
        for page, array in zip(pages, arrays[max(n_there - first, 0) :], strict=False):
            self._cached.write_page(page, array)
        if n_there + len(pages) < first + len(pieces):
            load.is_given_up = True  # what it continues has gone, or there is no room

    def _put_beside(self, pages: Items[int], arrays: Items[Bytes]) -> None:
        """Take what a model that guesses has of pages that are in the cache."""
        beside = self._cached.beside
        for page, array in zip(pages, arrays, strict=False):
            if beside is not None and not beside.is_whole(page):
                beside.write_page(page, array)

    def _finish(self, load: _Load) -> None:
        """Let the sequence go on."""
        self._load, load.seq.is_loading = None, False
        if load.is_given_up or not load.end:
            return
        seconds = time.perf_counter() - load.began
        self._loaded.seconds += seconds
        self._loaded.n_tokens += load.end * self._size - load.n_cached
        self._rate.note(sum(n for _, _, n in self._pieces(load)), seconds)
